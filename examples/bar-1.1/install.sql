CREATE FUNCTION @extschema@.bar_add(a integer, b integer) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT
    SET search_path = pg_catalog, pg_temp
AS 'SELECT a::bigint + b';

CREATE FUNCTION @extschema@.bar_sum(VARIADIC numbers integer[]) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT
    SET search_path = pg_catalog, pg_temp
AS 'SELECT coalesce(sum(n), 0) FROM unnest(numbers) n';
