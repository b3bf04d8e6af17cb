#!/bin/sh
# Sourced where a server starts: its passwords, which are made once, with its data.
umask 077

# secret FILE [GIVEN]: put GIVEN into FILE; without it, keep what is there, or make a random one of 190 bits.
secret() {
    if [ -n "${2:-}" ]; then printf %s "$2" > "$1.new"
    elif [ ! -s "$1" ]; then head -c 24 /dev/urandom | base64 | tr -d '+/=\n' > "$1.new"
    else return 0; fi
    mv "$1.new" "$1"
}

# share FILE NAME: hand the app's password to the stack's other containers, in the volume that they can only read.
share() {
    cp "$1" "/var/tmp/$2.new"
    chmod 444 "/var/tmp/$2.new"
    mv -f "/var/tmp/$2.new" "/var/tmp/$2"
}
