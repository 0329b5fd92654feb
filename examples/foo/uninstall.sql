-- Without this file, what the installation made is dropped in reverse order. Here
-- it would do; a script is needed where an extension has more to say.

DO $$
BEGIN
    IF EXISTS (SELECT FROM @extschema@.foo_result) THEN
        RAISE EXCEPTION 'foo has results' USING HINT = 'DELETE FROM foo_result first, if nobody needs them.';
    END IF;
END
$$;

DROP FUNCTION @extschema@.foo_remember(integer, integer[]);
DROP FUNCTION @extschema@.foo_total(integer[]);
DROP TABLE @extschema@.foo_result;
