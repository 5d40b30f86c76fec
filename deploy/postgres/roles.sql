-- The two roles marketd needs in PostgreSQL, with the least rights that do. Safe to run again.
--
--   psql -d marketd -f deploy/postgres/roles.sql        as superuser, on marketd's own database
--   psql -d marketd -c '\password marketd_daemon'       the roles have no password, so nobody can log in,
--   psql -d marketd -c '\password marketd_loader'       until you give them one; it is sent hashed
--
-- marketd_loader   DATABASE_URL of data_migration/setup_providers.py and populate_instrument_mappings.py:
--                  owns the tables, so it can migrate and fill them.
-- marketd_daemon   DATABASE_URL of main.py run: reads the tables and listens to their changes; writes the
--                  coverage ledger, and nothing else.

\set ON_ERROR_STOP on

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketd_loader') THEN
        CREATE ROLE marketd_loader LOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'marketd_daemon') THEN
        CREATE ROLE marketd_daemon LOGIN;
    END IF;
END
$$;

ALTER ROLE marketd_loader NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
ALTER ROLE marketd_daemon NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 10;

-- A session that hangs gives up by itself; one that should write nothing cannot, even by mistake.
ALTER ROLE marketd_loader SET idle_in_transaction_session_timeout = '5min';
ALTER ROLE marketd_daemon SET default_transaction_read_only = on;
ALTER ROLE marketd_daemon SET statement_timeout = '5s';
ALTER ROLE marketd_daemon SET lock_timeout = '2s';
ALTER ROLE marketd_daemon SET idle_in_transaction_session_timeout = '10s';

DO $$
DECLARE
    item text;
BEGIN
    EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO marketd_loader, marketd_daemon', current_database());
    -- What an earlier set-up made with another role.
    FOREACH item IN ARRAY ARRAY['alembic_version', 'providers', 'exchanges', 'instruments',
                                'exchange_provider_mappings', 'provider_instrument_mappings'] LOOP
        IF to_regclass('public.' || item) IS NOT NULL THEN
            EXECUTE format('ALTER TABLE public.%I OWNER TO marketd_loader', item);
            EXECUTE format('REVOKE ALL ON public.%I FROM PUBLIC, marketd_daemon', item);
            EXECUTE format('GRANT SELECT ON public.%I TO marketd_daemon', item);
        END IF;
    END LOOP;
    -- What the daemon keeps itself: which spans of the past are stored, missing or not to be had.
    IF to_regclass('public.coverage') IS NOT NULL THEN
        ALTER TABLE public.coverage OWNER TO marketd_loader;
        REVOKE ALL ON public.coverage FROM PUBLIC;
        GRANT SELECT, INSERT, UPDATE, DELETE ON public.coverage TO marketd_daemon;
    END IF;
    FOREACH item IN ARRAY ARRAY['announce_mapping_change', 'set_updated_at'] LOOP
        IF to_regprocedure('public.' || item || '()') IS NOT NULL THEN
            EXECUTE format('ALTER FUNCTION public.%I() OWNER TO marketd_loader', item);
        END IF;
    END LOOP;
END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO marketd_loader;
GRANT USAGE ON SCHEMA public TO marketd_daemon;
-- Tables the loader makes from now on can be read by the daemon.
ALTER DEFAULT PRIVILEGES FOR ROLE marketd_loader IN SCHEMA public GRANT SELECT ON TABLES TO marketd_daemon;

COMMIT;
