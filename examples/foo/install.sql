\echo Use "rideau extension install foo" to install this. \quit

-- Names of other extensions' objects are qualified by where those extensions are,
-- which is not known before they are installed.

CREATE TABLE @extschema@.foo_result (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    total  bigint NOT NULL,
    share  @extschema:baz@.baz_percent NOT NULL
);

-- bar_sum is new in bar 1.1: this is why foo depends on bar (>= 1.1). The setting
-- foo.factor is in foo.conf; who has not set it has 1.
CREATE FUNCTION @extschema@.foo_total(VARIADIC numbers integer[]) RETURNS bigint
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT @extschema:bar@.bar_sum(VARIADIC numbers)
           * coalesce(nullif(current_setting('foo.factor', true), ''), '1')::bigint
$$;

CREATE FUNCTION @extschema@.foo_remember(part integer, VARIADIC numbers integer[]) RETURNS bigint
    LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO @extschema@.foo_result (total, share)
         VALUES (@extschema@.foo_total(VARIADIC numbers), part)
      RETURNING id
$$;

COMMENT ON FUNCTION @extschema@.foo_total(integer[]) IS 'the sum of the numbers, times foo.factor';
