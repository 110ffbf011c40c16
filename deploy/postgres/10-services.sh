# Sourced once, when the data folder is new: a role and a database for each service, and nobody else may enter.
# The passwords are those in the services' own secrets. They are hexadecimal, and reach psql by its standard input.
for name in schedule participants notifications; do
  url=$(cat "/run/secrets/${name}_database_url")
  password=${url#*://*:}
  password=${password%%@*}
  psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
\\set password '${password}'
CREATE ROLE ${name} LOGIN PASSWORD :'password';
CREATE DATABASE ${name} OWNER ${name};
REVOKE ALL ON DATABASE ${name} FROM PUBLIC;
SQL
done
psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
SQL
unset name url password
