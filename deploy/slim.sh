#!/bin/sh
# Leaves of an image what its workers run on: no package manager, no Perl, nothing that runs with another user's rights. The record
# of Debian's packages and their licences stay, for those who look for vulnerabilities. For deploy/Dockerfile.
set -eu
cd /
scripts=$(find usr/bin usr/sbin -type f -exec grep -lIE '^#! ?/usr/bin/(env )?perl' {} + || true)
# shellcheck disable=SC2086  # several names
rm -rf $scripts usr/bin/apt* usr/bin/dpkg* usr/sbin/dpkg* usr/bin/deb* usr/bin/sqv usr/bin/update-alternatives usr/bin/perl* usr/bin/pip* usr/local/bin/pip* \
    usr/lib/apt usr/lib/dpkg usr/share/dpkg usr/share/debconf usr/share/perl* usr/lib/*/perl* usr/lib/*/libperl* \
    usr/lib/*/libapt* usr/lib/sysupgrade etc/apt etc/dpkg usr/share/man usr/share/info usr/share/locale usr/share/lintian var/cache/* \
    var/log/* var/lib/apt
find var/lib/dpkg -mindepth 1 -depth ! -name status ! -path 'var/lib/dpkg/status.d*' -delete
find usr/share/doc ! -type d ! -name copyright -delete
find usr/lib/python3* usr/local/lib/python3* -depth -type d \( -name pip -o -name 'pip-*' -o -name ensurepip -o -name setuptools \
    -o -name 'setuptools-*' -o -name pkg_resources -o -name wheel -o -name 'wheel-*' -o -name test -o -name idlelib \) -exec rm -rf {} + 2> /dev/null || true
find . -xdev -type f -perm /6000 -exec chmod a-s {} +
