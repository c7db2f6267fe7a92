-- Everything that PostgreSQL runs without a statement naming it, each with a user function of its own.
CREATE SCHEMA app;
SET search_path = app;

CREATE FUNCTION f_default() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
CREATE FUNCTION f_generated(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION f_check(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION f_index(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION f_predicate(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION f_partition(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION f_policy() RETURNS bool LANGUAGE sql STABLE AS 'SELECT true';
CREATE FUNCTION f_view(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE FUNCTION f_matview(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE FUNCTION f_statistics(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION f_domain(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION f_operator(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION f_subtype_diff(int, int) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT 1.0::float8';
CREATE FUNCTION f_state(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION f_final(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION f_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION f_update_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION f_off_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION f_when(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION f_instead() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';

CREATE TABLE plain (id serial PRIMARY KEY, n int);
CREATE TABLE defaults (id int, n int DEFAULT f_default());
CREATE TABLE generated (id int, n int GENERATED ALWAYS AS (f_generated(id)) STORED);
CREATE TABLE computed (id int, secret text, other text, tail text GENERATED ALWAYS AS (right(secret, 4) || other) STORED,
    twice int GENERATED ALWAYS AS (id * 2) STORED, plain text DEFAULT 'x');
CREATE TABLE checked (id int CHECK (f_check(id)));
CREATE TABLE indexed (id int);
CREATE INDEX ON indexed (f_index(id)) WHERE f_predicate(id);
CREATE TABLE parted (id int) PARTITION BY RANGE (f_partition(id));
CREATE TABLE part_low PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE secured (id int);
CREATE POLICY p ON secured USING (f_policy());
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE TABLE described (id int);
CREATE STATISTICS app.s ON (f_statistics(id)) FROM described;
CREATE TABLE triggered (id int);
CREATE TRIGGER t AFTER INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION f_trigger();
CREATE TRIGGER u BEFORE UPDATE ON triggered FOR EACH ROW WHEN (f_when(new.id)) EXECUTE FUNCTION f_update_trigger();
CREATE TRIGGER o BEFORE DELETE ON triggered FOR EACH STATEMENT EXECUTE FUNCTION f_off_trigger();
ALTER TABLE triggered DISABLE TRIGGER o;
CREATE TABLE emptied (id int);
CREATE TRIGGER e AFTER TRUNCATE ON emptied FOR EACH STATEMENT EXECUTE FUNCTION f_trigger();
CREATE TABLE family_parent (id int);
CREATE TABLE family_child () INHERITS (family_parent);
CREATE TRIGGER t AFTER DELETE ON family_child FOR EACH ROW EXECUTE FUNCTION f_trigger();

CREATE VIEW calls_view AS SELECT f_view(id) AS n FROM plain;
CREATE VIEW nested_view AS SELECT n FROM calls_view;
CREATE VIEW reads_files AS SELECT pg_catalog.pg_read_file('PG_VERSION') AS text;
CREATE VIEW draws AS SELECT nextval('plain_id_seq') AS n;
CREATE MATERIALIZED VIEW calls_matview AS SELECT f_matview(id) AS n FROM plain;
CREATE MATERIALIZED VIEW nested_matview AS SELECT n FROM nested_view;
CREATE VIEW simple_view AS SELECT id FROM triggered;
CREATE VIEW instead_view AS SELECT id FROM plain;
CREATE TRIGGER i INSTEAD OF INSERT ON instead_view FOR EACH ROW EXECUTE FUNCTION f_instead();

CREATE DOMAIN positive AS int CHECK (f_domain(VALUE));
CREATE TYPE pair AS (a int, b positive);
CREATE TABLE paired (id int, p pair);
CREATE VIEW casts_view AS SELECT id::positive AS id FROM plain;
CREATE TYPE span AS RANGE (subtype = int, subtype_diff = f_subtype_diff);
CREATE OPERATOR <<<< (LEFTARG = int, RIGHTARG = int, FUNCTION = f_operator);
CREATE VIEW operator_view AS SELECT id <<<< 1 AS b FROM plain;
CREATE AGGREGATE total (int) (SFUNC = f_state, STYPE = int, FINALFUNC = f_final);
CREATE VIEW aggregate_view AS SELECT total(id) AS n FROM plain;

CREATE TYPE mood AS ENUM ('low', 'high');
CREATE FUNCTION f_cast(mood) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE CAST (mood AS int) WITH FUNCTION f_cast(mood) AS IMPLICIT;
CREATE TABLE moods (id int, m mood);

CREATE TABLE parent (id int PRIMARY KEY, other int UNIQUE, name text);
CREATE TABLE cascaded (id int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE nulled (id int REFERENCES parent ON DELETE SET NULL);
CREATE TABLE kept (id int REFERENCES parent);
CREATE TABLE moved (id int REFERENCES parent (other) ON UPDATE CASCADE);

CREATE FUNCTION date_trunc(text, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION lower(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION many(VARIADIC int[]) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
