#!/usr/bin/env bash
# Before PostgreSQL starts: a secret that is empty or a sample ends it here, in one line. The image would else make a
# data folder first, and not look at the rest of its set-up again.
set -euo pipefail
for name in postgres_password schedule_database_url participants_database_url notifications_database_url; do
  secret=$(cat "/run/secrets/$name")
  case $secret in *://*@*) secret=${secret#*://*:} secret=${secret%%@*} ;; esac
  case ${secret,,} in
    '' | change-me | changeme | example | ... | password | sample | secret | todo | xxx)
      echo "postgres: the secret $name is empty or a sample: put a real one there (make secrets makes them)" >&2
      exit 1 ;;
  esac
done
if [ -e /var/lib/postgresql/restore-unfinished ]; then
  echo "postgres: a restore was begun and not finished: run make restore again, with the same folder or another" >&2
  exit 1
fi
exec docker-entrypoint.sh "$@"
