#!/bin/sh
# The command `aquad` of the image: for the container's start, its health check and every `docker exec`, so that all of
# them are the same user with the same rights. As root it becomes `backup`, and keeps at most CAP_DAC_READ_SEARCH: it reads
# everything that is mounted, and writes nothing that is not its own.
set -eu

READS_ALL=4     # CAP_DAC_READ_SEARCH, as a bit
CHANGES=448     # CAP_SETGID, CAP_SETUID and CAP_SETPCAP

set -- /opt/aquad/bin/python -m aquad.image "$@"

if [ "$(id -u)" -ne 0 ] || [ "${AQUAD_STAY_ROOT:-}" = 1 ]; then
    exec "$@"
fi

while read -r name value; do
    if [ "$name" = CapEff: ]; then rights=$((0x$value)); fi
done </proc/self/status

if [ $((rights & CHANGES)) -ne "$CHANGES" ]; then
    echo "aquad: error: become user backup: root of this container may not change users" >&2
    echo "  Give it cap_add: [DAC_READ_SEARCH, SETUID, SETGID, SETPCAP], or start it with user: \"1034:1034\"." >&2
    exit 1
fi

keep=-all
if [ $((rights & READS_ALL)) -ne 0 ]; then keep=-all,+dac_read_search; fi

exec setpriv --reuid backup --regid backup --clear-groups --no-new-privs \
    --inh-caps "$keep" --ambient-caps "$keep" --bounding-set "$keep" -- "$@"
