-- The ledger, format 2: packages that were uploaded, to be installed in SQL.
-- Relations are kept as data, see relationsJSON, so that SQL has no lists to read.
ALTER TABLE extension.installed ADD relations jsonb NOT NULL DEFAULT '{"depends": [], "conflicts": [], "provides": []}';

CREATE TABLE extension.package (
	name        text NOT NULL,
	version     text NOT NULL,  -- of the release
	extversion  text NOT NULL,  -- of its SQL
	kind        text NOT NULL,
	comment     text NOT NULL,
	schema      text NOT NULL,  -- fixed by the package; empty: the user chooses
	relocatable boolean NOT NULL,
	relations   jsonb NOT NULL,
	odd_order   boolean NOT NULL, -- upgrade scripts contradict the order of versions
	settings    jsonb NOT NULL,
	control     bytea NOT NULL,
	depends     text NOT NULL,
	conflicts   text NOT NULL,
	uninstall   bytea,
	sha256      text NOT NULL,
	signed_by   text NOT NULL,
	uploaded_at timestamptz NOT NULL DEFAULT now(),
	uploaded_by text NOT NULL DEFAULT current_user,
	PRIMARY KEY (name, version)
);
COMMENT ON TABLE extension.package IS 'packages that SQL can install';

CREATE TABLE extension.path (
	name         text NOT NULL,
	version      text NOT NULL,
	from_version text NOT NULL,  -- empty: installs
	steps        text[] NOT NULL, -- versions on the way, the last is extversion
	PRIMARY KEY (name, version, from_version)
);
COMMENT ON TABLE extension.path IS 'which scripts lead to a package''s version';

CREATE TABLE extension.statement (
	name         text NOT NULL,
	version      text NOT NULL,
	from_version text NOT NULL,  -- empty: of a script that installs
	to_version   text NOT NULL,  -- empty: of the script that uninstalls
	seq          integer NOT NULL,
	file         text NOT NULL,
	line         integer NOT NULL,
	sql          text NOT NULL,
	PRIMARY KEY (name, version, from_version, to_version, seq)
);
COMMENT ON TABLE extension.statement IS 'the scripts of packages, one statement a row';

GRANT SELECT ON extension.package, extension.path, extension.statement TO PUBLIC;
UPDATE extension.meta SET format = 2;
