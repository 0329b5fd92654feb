-- The same name and arguments as in foo: in one schema there can be only one of
-- them, and in two it depends on search_path which one is called. foo therefore
-- conflicts with bla (< 0.8).
CREATE FUNCTION @extschema@.foo_total(VARIADIC numbers integer[]) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS 'SELECT count(n) FROM unnest(numbers) n';
