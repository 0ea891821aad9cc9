"""A database rich in kinds of objects, and what is compared of it."""

RICH = r'''
CREATE ROLE app LOGIN PASSWORD 'app-secret'; CREATE ROLE readers; CREATE ROLE "Odd Role-1" NOINHERIT CREATEDB;
GRANT readers TO app WITH ADMIN OPTION; ALTER ROLE app SET work_mem TO '8MB';
COMMENT ON ROLE app IS 'the app';
CREATE DATABASE rich OWNER app; CREATE DATABASE "Second DB'=x" TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C';
COMMENT ON DATABASE rich IS $$multi
\connect postgres
line 'quoted'$$;
ALTER DATABASE rich SET search_path TO app, public; ALTER ROLE app IN DATABASE rich SET statement_timeout TO '7s';
REVOKE CONNECT ON DATABASE rich FROM PUBLIC; GRANT CONNECT, TEMPORARY ON DATABASE rich TO readers WITH GRANT OPTION;
ALTER DATABASE rich CONNECTION LIMIT 77;
\connect rich
CREATE EXTENSION hstore; CREATE EXTENSION citext;
CREATE SCHEMA app AUTHORIZATION app;
SET search_path TO app, public;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
CREATE COLLATION mine (provider = libc, locale = 'C');
CREATE TABLE things (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text COLLATE mine NOT NULL, n positive, amount numeric(12,3), ratio float8,
  flag bool, born date, at timestamptz, span interval, doc jsonb, tags text[], raw bytea, mood mood, ip inet, uid uuid, r int4range, p pair, h hstore, c citext,
  twice int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO things (name, n, amount, ratio, flag, born, at, span, doc, tags, raw, mood, ip, uid, r, p, h, c)
  SELECT E'name\t\\.\n' || i, i, i / 7.0, i / 3.0, i % 2 = 0, date '2000-01-01' + i, timestamptz '2024-01-01 00:00Z' + i * interval '1 s', i * interval '1 min',
  jsonb_build_object('k', i, 'ü', E'\n'), ARRAY['a', NULL, 'b"c'], decode(md5(i::text), 'hex'), 'ok', '10.0.0.1', md5(i::text)::uuid, int4range(i, i + 5), ROW(i, 'x'::text)::pair, hstore('a', i::text), 'CI'
  FROM generate_series(1, 2000) i;
CREATE INDEX ON things USING gin (doc); CREATE UNIQUE INDEX things_name ON things (lower(name)) WHERE flag;
CREATE TABLE parts (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100); CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (1000);
INSERT INTO parts SELECT i, 'v' || i FROM generate_series(0, 499) i;
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3), (4, 5);
CREATE TABLE "We""ird. Näme
two" ("Col ""1""" int, "FROM stdin;" text); INSERT INTO "We""ird. Näme
two" VALUES (1, E'\\.'), (2, E'\n\\.\n'), (3, NULL);
CREATE TABLE "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" (); INSERT INTO "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" DEFAULT VALUES;
CREATE TABLE empty (a int);
CREATE VIEW app.happy AS SELECT id, name FROM things WHERE mood = 'ok'; CREATE MATERIALIZED VIEW app.total AS SELECT count(*) AS n FROM things;
CREATE FUNCTION app.decoy() RETURNS text LANGUAGE sql AS $f$ SELECT '
--
-- not data
COPY app.things (id) FROM stdin;
1
\.
' $f$;
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RETURN NEW; END $f$;
CREATE TRIGGER touched BEFORE UPDATE ON things FOR EACH ROW EXECUTE FUNCTION app.touch();
CREATE RULE no_delete AS ON DELETE TO parts_low DO INSTEAD NOTHING;
ALTER TABLE things ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON things FOR SELECT TO readers USING (flag);
CREATE SEQUENCE app.counter START 41; SELECT nextval('app.counter');
CREATE FUNCTION app.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $f$ BEGIN END $f$;
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION app.on_ddl();
CREATE PUBLICATION pub FOR TABLE app.parts_low;
CREATE STATISTICS app.st (dependencies) ON n, ratio FROM things;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO readers; GRANT SELECT (id, name) ON things TO readers;
COMMENT ON COLUMN things.name IS E'with ''quotes'' and \\back';
SELECT lo_from_bytea(424242, decode(repeat('00ff', 5000), 'hex')); COMMENT ON LARGE OBJECT 424242 IS 'lob';
CREATE AGGREGATE app.sum2(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0'); CREATE CAST (app.pair AS text) WITH INOUT;
\connect -reuse-previous=on "dbname='Second DB\'=x'"
CREATE TABLE latin (t text); INSERT INTO latin VALUES (E'caf\xe9'), ('plain');
'''

TABLES = """SELECT quote_ident(n.nspname) || '.' || quote_ident(relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
  WHERE relkind IN ('r', 'm') AND nspname !~ '^(pg_|information_schema)' ORDER BY 1"""
OBJECTS = [
    "SELECT n.nspname, p.proname, md5(p.prosrc), pg_get_userbyid(proowner) FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE n.nspname = 'app' ORDER BY 1, 2",
    "SELECT schemaname, tablename, indexname, indexdef FROM pg_indexes WHERE schemaname !~ '^pg_' ORDER BY 1, 2, 3",
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace::regnamespace::text !~ '^(pg_|information)' ORDER BY 1, 2",
    "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
    "SELECT polname, polrelid::regclass::text, polroles::regrole[]::text, pg_get_expr(polqual, polrelid) FROM pg_policy ORDER BY 1",
    "SELECT evtname, evtevent FROM pg_event_trigger ORDER BY 1",
    "SELECT pubname, puballtables FROM pg_publication ORDER BY 1",
    "SELECT oid::bigint, md5(lo_get(oid)), obj_description(oid, 'pg_largeobject') FROM pg_largeobject_metadata ORDER BY 1",
    "SELECT extname, extversion FROM pg_extension ORDER BY 1",
    "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1",
    "SELECT relname, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) a), relrowsecurity FROM pg_class WHERE relnamespace::regnamespace::text = 'app' AND relkind IN ('r','v','m','p') ORDER BY 1",
    "SELECT defaclobjtype, defaclacl::text FROM pg_default_acl ORDER BY 1, 2",
    "SELECT objsubid, description FROM pg_description d JOIN pg_class c ON c.oid = objoid WHERE relname = 'things' ORDER BY 1",
]
CLUSTER = [
    "SELECT rolname, rolsuper, rolinherit, rolcreatedb, rolcanlogin, rolpassword FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY 1",
    "SELECT roleid::regrole::text, member::regrole::text, admin_option FROM pg_auth_members WHERE roleid::regrole::text !~ '^pg_' ORDER BY 1, 2",
    "SELECT datname, pg_encoding_to_char(encoding), datcollate, datctype, pg_get_userbyid(datdba), (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), datconnlimit, datallowconn, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname IN ('rich', 'Second DB''=x') ORDER BY 1",
    "SELECT d.datname, r.rolname, setconfig::text FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = setdatabase LEFT JOIN pg_roles r ON r.oid = setrole WHERE d.datname IS NULL OR d.datname !~ '_before_' ORDER BY 1, 2",
]


def fingerprint(server, *, database="rich", second=True):
    """Rows and checksum of every table, definitions of every kind of object, roles and databases."""
    seen = {}
    for name in (database, "Second DB'=x") if second else (database,):
        with server.connect(name) as connection:
            if name != database:
                connection.execute("SET client_encoding TO 'SQL_ASCII'")
            for (table,) in connection.execute(TABLES).fetchall():
                table = table.decode() if isinstance(table, bytes) else table
                query = f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ONLY {table} t"
                seen[name, table] = connection.execute(query).fetchone()
            if name == database:
                for query in OBJECTS:
                    seen[query] = connection.execute(query).fetchall()
    return seen


def cluster(server):
    with server.connect() as connection:
        return {query: connection.execute(query).fetchall() for query in CLUSTER}
