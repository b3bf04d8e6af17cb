%% Runs in a node from its start: a node that serves while it is on the smaller side of a cut exits, its clients go to another one,
%% and the engine starts its container again. It reads what this node knows, and asks no other.
%%
%% pause_minority covers a part of that. A node that was frozen comes back as one that others have given up: in Mnesia's words it
%% is partitioned from them, until somebody restarts it. With Khepri, which is RabbitMQ's own choice from 4.2 on, no node pauses.
%% Source: https://www.rabbitmq.com/docs/partitions; https://www.rabbitmq.com/docs/metadata-store/failure-recovery.
spawn(fun() ->
    Known = fun(Ask) -> try Ask() catch _:_ -> [] end end,
    (fun Watch() ->
        timer:sleep(1000),
        Others = Known(fun() -> true = rabbit:is_running(), rabbit_nodes:list_members() -- [node()] end),
        Away = [Node || Node <- Others, not lists:member(Node, nodes())],
        Parted = [Node || Node <- Known(fun() -> rabbit_node_monitor:partitions() end), lists:member(Node, Others)],
        case Others =/= [] andalso lists:usort(Away ++ Parted) =:= lists:usort(Others) of
            true ->
                logger:critical("this node sees none of the others, or they have given it up: it exits, to join them again"),
                timer:sleep(100),
                erlang:halt(1);
            false ->
                Watch()
        end
    end)()
end).
