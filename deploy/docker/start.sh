#!/bin/sh
# Starts marketd, Redis, PostgreSQL, Prometheus and Grafana. Secrets are made once, into deploy/docker/.env.
# Further arguments go to docker compose, as in: deploy/docker/start.sh --build
set -eu
cd "$(dirname "$0")"

secret() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

if [ ! -f .env ]; then
    umask 077
    metrics=$(secret)
    client=$(secret)
    cat > .env.part <<SECRETS
POSTGRES_PASSWORD=$(secret)
REDIS_PASSWORD=$(secret)
GRAFANA_PASSWORD=$(secret)
METRICS_TOKEN=$metrics
API_TOKENS=prometheus:$metrics:admin,me:$client
# Fill these in for Dhan, then start again. Without them Dhan is parked and Yahoo runs.
DHAN_CLIENT_ID=
DHAN_ACCESS_TOKEN=
SECRETS
    mv .env.part .env
    echo "made secrets in $(pwd)/.env"
fi

if ! command -v docker >/dev/null 2>&1; then
    echo "docker is not installed: see https://docs.docker.com/engine/install/" >&2
    exit 69
fi
docker compose up --detach "$@"
echo "dashboard  http://127.0.0.1:8080/   token: the entry 'me' of API_TOKENS in $(pwd)/.env"
echo "grafana    http://127.0.0.1:3000/   user admin, password GRAFANA_PASSWORD there"
