CREATE DOMAIN @extschema@.baz_percent AS integer
    CHECK (VALUE BETWEEN 0 AND 100);
