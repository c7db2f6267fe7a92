-- Functions in the language SQL, each of which does something that a policy has to judge.
CREATE SCHEMA app;
CREATE SCHEMA other;
CREATE TABLE app.orders (id serial PRIMARY KEY, customer int, total numeric);
CREATE TABLE app.people (id int PRIMARY KEY, name text, ssn text);
CREATE TABLE app.regions (id int PRIMARY KEY, name text);
CREATE TABLE other.orders (id int, total numeric);
CREATE TABLE app.log (line text);
CREATE VIEW app.people_view AS SELECT id, ssn AS number FROM app.people;
SET search_path = app;

CREATE FUNCTION total(customer int) RETURNS numeric LANGUAGE sql STABLE
    RETURN (SELECT sum(o.total) FROM orders o WHERE o.customer = total.customer);
CREATE FUNCTION total_text(int) RETURNS numeric LANGUAGE sql STABLE
    AS 'SELECT sum(total) FROM orders WHERE customer = $1';
CREATE FUNCTION total_own(customer int) RETURNS numeric LANGUAGE sql STABLE SET search_path = app, pg_temp
    AS 'SELECT sum(total) FROM orders o WHERE o.customer = total_own.customer';
CREATE FUNCTION total_unsure() RETURNS numeric LANGUAGE sql STABLE SET search_path = app, other
    AS 'SELECT sum(total) FROM orders';
CREATE FUNCTION total_user() RETURNS numeric LANGUAGE sql STABLE SET search_path = "$user", app
    AS 'SELECT sum(total) FROM orders';
CREATE FUNCTION total_none() RETURNS numeric LANGUAGE sql STABLE SET search_path = ''
    AS 'SELECT sum(total) FROM app.orders';
CREATE FUNCTION log_line(text) RETURNS void LANGUAGE sql BEGIN ATOMIC
    INSERT INTO log VALUES ($1); DELETE FROM regions WHERE id = 0; SELECT total(1); END;
CREATE PROCEDURE log_procedure(text) LANGUAGE sql BEGIN ATOMIC INSERT INTO log VALUES ($1); END;
CREATE PROCEDURE plain_procedure() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
CREATE FUNCTION outer_text() RETURNS numeric LANGUAGE sql AS 'SELECT total_text(1)';
CREATE FUNCTION people_rows() RETURNS SETOF people LANGUAGE sql BEGIN ATOMIC SELECT * FROM people; END;
CREATE FUNCTION view_rows() RETURNS SETOF text LANGUAGE sql BEGIN ATOMIC SELECT number FROM people_view; END;
CREATE FUNCTION region_rows() RETURNS TABLE (n text) LANGUAGE sql AS 'SELECT name FROM regions';
CREATE FUNCTION runs_sql(text) RETURNS xml LANGUAGE sql AS 'SELECT query_to_xml($1, true, true, '''')';
CREATE FUNCTION runs_sql_parsed(text) RETURNS xml LANGUAGE sql RETURN query_to_xml($1, true, true, '');
CREATE FUNCTION by_default(n numeric DEFAULT total(1)) RETURNS numeric LANGUAGE sql RETURN n;
CREATE FUNCTION definer() RETURNS numeric LANGUAGE sql SECURITY DEFINER RETURN (SELECT sum(total) FROM orders);
CREATE FUNCTION procedural() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
CREATE FUNCTION calls_procedural() RETURNS int LANGUAGE sql RETURN procedural();
CREATE FUNCTION makes() RETURNS void LANGUAGE sql AS 'CREATE TABLE made (id int)';
CREATE FUNCTION moves(text) RETURNS text LANGUAGE sql AS 'SELECT set_config(''search_path'', $1, false)';
CREATE FUNCTION changes_settings() RETURNS int LANGUAGE sql SET session_replication_role = replica AS 'SELECT 1';
CREATE FUNCTION loops(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE OR REPLACE FUNCTION loops(int) RETURNS int LANGUAGE sql AS 'SELECT CASE WHEN $1 > 0 THEN loops($1 - 1) END';
CREATE FUNCTION one_of(int) RETURNS int LANGUAGE sql RETURN 1;
CREATE FUNCTION one_of(text) RETURNS bigint LANGUAGE sql RETURN (SELECT count(*) FROM regions);
CREATE FUNCTION first_of(anyarray) RETURNS anyelement LANGUAGE sql IMMUTABLE AS 'SELECT $1[1]';
CREATE FUNCTION empty() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION stamped() RETURNS text LANGUAGE sql AS 'SELECT name FROM regions LIMIT 1';
CREATE TABLE stamps (id int, by text DEFAULT stamped());
CREATE TABLE indexed (id int);
CREATE INDEX by_text ON indexed (first_of(ARRAY[id]));
CREATE FUNCTION parsed(int) RETURNS int LANGUAGE sql IMMUTABLE RETURN $1;
CREATE TABLE indexed_parsed (id int);
CREATE INDEX by_parsed ON indexed_parsed (parsed(id));
CREATE VIEW totals AS SELECT total(1) AS n;
CREATE DOMAIN positive AS int CHECK (VALUE > 0 AND loops(VALUE) IS NULL);
CREATE FUNCTION of_domain(positive) RETURNS int LANGUAGE sql RETURN 1;
CREATE FUNCTION adds(int, int) RETURNS numeric LANGUAGE sql RETURN total($1);
CREATE OPERATOR <+> (LEFTARG = int, RIGHTARG = int, FUNCTION = adds);
