#!/usr/bin/env bash
# A Ray head on this machine for `ray job submit`, token authentication on, until Ctrl-C.
#
#   infra/local-head.sh [FOLDER]       FOLDER (default /tmp/cibhash-head) keeps the token, the logs and `env`
#   . FOLDER/env                       in another shell: who may submit, and where to
#
# PORT, DASHBOARD_PORT, AGENT_PORT, CLIENT_PORT and NUM_CPUS (logical CPUs) may be set; another Ray on the machine holds
# the default AGENT_PORT, and without an agent no job is taken. The dashboard listens on 127.0.0.1; other
# ports of Ray listen on all interfaces and are protected by the token alone, which travels in clear: on a machine that
# others can reach, put a firewall in front. FOLDER must be short, for Ray puts sockets below it.
set -euo pipefail

folder=${1:-/tmp/cibhash-head}
port=${PORT:-6379} dashboard_port=${DASHBOARD_PORT:-8265} agent_port=${AGENT_PORT:-52365}
client_port=${CLIENT_PORT:-10001} num_cpus=${NUM_CPUS:-8}
token=$folder/token

if ((${#folder} > 60)); then
  echo "error: $folder has ${#folder} characters, the limit is 60" >&2
  exit 2
fi
mkdir -p "$folder"
chmod 700 "$folder"
if [[ ! -s $token ]]; then
  (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token")
fi
cat >"$folder/env" <<ENV
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port
ENV

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
export RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=2 # Serve replaces a dead proxy after three failures
unset RAY_AUTH_TOKEN RAY_ADDRESS
echo "starting; then in another shell: . $folder/env" >&2
exec ray start --head --block --disable-usage-stats --include-dashboard=true \
  --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
  --dashboard-agent-listen-port="$agent_port" --ray-client-server-port="$client_port" \
  --num-cpus="$num_cpus" --object-store-memory=$((512 << 20)) --temp-dir="$folder/ray"
