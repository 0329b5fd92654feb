CREATE FUNCTION @extschema@.bla_count(VARIADIC numbers integer[]) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS 'SELECT count(n) FROM unnest(numbers) n';
