-- The ledger, format 1: what is installed in this database.
--
-- Everybody may read it, as everybody may read pg_extension. Only the owner of
-- the schema may write, and whom the owner lets: whoever can write here decides
-- what an uninstallation drops.
CREATE SCHEMA extension;
COMMENT ON SCHEMA extension IS 'what Rideau has installed in this database';
GRANT USAGE ON SCHEMA extension TO PUBLIC;

CREATE TABLE extension.meta (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	product  text NOT NULL CHECK (product = 'rideau'),
	format   integer NOT NULL CHECK (format > 0)
);
COMMENT ON TABLE extension.meta IS 'the format of this schema';

CREATE TABLE extension.installed (
	name         text PRIMARY KEY,
	version      text NOT NULL,
	mode         text NOT NULL,
	schema       text NOT NULL,
	control      bytea NOT NULL,
	depends      text NOT NULL,
	conflicts    text NOT NULL,
	sha256       text NOT NULL,
	settings     jsonb NOT NULL,
	uninstall    bytea,
	installed_at timestamptz NOT NULL DEFAULT now(),
	installed_by text NOT NULL DEFAULT current_user
);
COMMENT ON TABLE extension.installed IS 'extensions that Rideau has installed or adopted';

CREATE TABLE extension.object (
	name           text NOT NULL,
	seq            integer NOT NULL,
	type           text NOT NULL,
	object_names   text[] NOT NULL,
	object_args    text[] NOT NULL,
	identity       text NOT NULL,
	definition_md5 text NOT NULL,
	PRIMARY KEY (name, seq)
);
COMMENT ON TABLE extension.object IS 'what modules consist of, as pg_identify_object_as_address names it';

GRANT SELECT ON extension.meta, extension.installed, extension.object TO PUBLIC;
INSERT INTO extension.meta (product, format) VALUES ('rideau', 1);
