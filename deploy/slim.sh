#!/bin/sh
# Leaves of an image what its workers run on: no package manager, no Perl, nothing that runs with another user's rights. The record
# of the other Debian packages and their licences stay, for those who look for vulnerabilities. With SOURCE_DATE_EPOCH, files
# that are newer than /tmp/begun get that time. For deploy/Dockerfile.
set -eu
cd /
scripts=$(find usr/bin usr/sbin -type f -exec grep -lIE '^#! ?/usr/bin/(env )?perl' {} + || true)
# shellcheck disable=SC2086  # several names
rm -rf $scripts usr/bin/apt* usr/bin/dpkg* usr/sbin/dpkg* usr/bin/deb* usr/bin/sqv usr/bin/update-alternatives usr/bin/perl* usr/bin/pip* usr/local/bin/pip* \
    usr/lib/apt usr/lib/dpkg usr/share/dpkg usr/share/debconf usr/share/perl* usr/lib/*/perl* usr/lib/*/libperl* \
    usr/lib/*/libapt* usr/lib/sysupgrade etc/apt etc/dpkg usr/share/man usr/share/info usr/share/locale usr/share/lintian var/cache/* \
    var/log/* var/lib/apt
# What is left of the removed packages, and their record: it names what is there.
python3 - <<'END'
import re
from pathlib import Path
gone = re.compile(
    r"Package: (apt|debconf|dpkg|sqv|libapt-pkg[\d.]+\w*|libperl[\d.]+\w*|perl(-base|-modules-[\d.]+)?"
    r"|python3-(pip|pkg-resources|setuptools|wheel))\n"
)
status = Path("var/lib/dpkg/status")
records = [record for record in status.read_text().split("\n\n") if record]
for name in [found[1] for record in records if (found := gone.match(record))]:
    for file in [*Path("var/lib/dpkg/info").glob(f"{name}.list"), *Path("var/lib/dpkg/info").glob(f"{name}:*.list")]:
        for path in map(Path, file.read_text().splitlines()):
            if path.is_symlink() or path.is_file():
                path.unlink()
status.write_text("".join(f"{record}\n\n" for record in records if not gone.match(record)))
END
find var/lib/dpkg -mindepth 1 -depth ! -name status ! -path 'var/lib/dpkg/status.d*' -delete
find usr/share/doc ! -type d ! -name copyright -delete
find usr/lib/python3* usr/local/lib/python3* -depth -type d \( -name pip -o -name 'pip-*' -o -name ensurepip -o -name setuptools \
    -o -name 'setuptools-*' -o -name pkg_resources -o -name wheel -o -name 'wheel-*' -o -name test -o -name idlelib \) -exec rm -rf {} + 2> /dev/null || true
find . -xdev -type f -perm /6000 -exec chmod a-s {} +
[ -z "${SOURCE_DATE_EPOCH:-}" ] || find . -xdev -newer tmp/begun -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
rm -f tmp/begun tmp/slim.sh
[ -z "${SOURCE_DATE_EPOCH:-}" ] || touch -d "@$SOURCE_DATE_EPOCH" tmp
