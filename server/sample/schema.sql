-- The sample shop. Run as the superuser in the empty database `shop`; psql sets :gateway_password.
--
-- Two owners without login own everything; the gateway's role is a member of one and a reader of the other.
-- It is no superuser and holds no right to read the server's files, to create roles or databases, or to
-- bypass row security: what the policy lets through meets PostgreSQL's own rights next.

CREATE ROLE shop_owner NOLOGIN;
CREATE ROLE hr_owner NOLOGIN;
CREATE ROLE countersign_gateway LOGIN PASSWORD :'gateway_password' IN ROLE shop_owner;

REVOKE ALL ON DATABASE shop FROM PUBLIC;
GRANT CONNECT ON DATABASE shop TO countersign_gateway;

ALTER SCHEMA public OWNER TO shop_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
CREATE SCHEMA hr AUTHORIZATION hr_owner;
GRANT USAGE ON SCHEMA hr TO countersign_gateway;

SET ROLE shop_owner;

CREATE TABLE public.customers (
    id         integer PRIMARY KEY,
    name       text NOT NULL,
    email      text NOT NULL UNIQUE,
    ssn        varchar(11) NOT NULL,
    card       text,
    notes      jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE public.customers IS 'People who buy from the shop. Holds personal data.';
COMMENT ON COLUMN public.customers.ssn IS 'US social security number, for credit checks';
COMMENT ON COLUMN public.customers.card IS 'Card on file';
COMMENT ON COLUMN public.customers.notes IS 'What support wrote down: channel, tags, remarks';
CREATE INDEX customers_created_at ON public.customers (created_at);

CREATE TABLE public.orders (
    id          bigint NOT NULL,
    customer_id integer NOT NULL REFERENCES public.customers,
    placed_at   date NOT NULL,
    status      text NOT NULL CHECK (status IN ('placed', 'paid', 'shipped', 'delivered', 'returned')),
    total       numeric(10, 2) NOT NULL CHECK (total >= 0),
    PRIMARY KEY (id, placed_at)
) PARTITION BY RANGE (placed_at);
COMMENT ON TABLE public.orders IS 'One row per order, a partition per month.';
COMMENT ON COLUMN public.orders.total IS 'Total in US dollars, tax included';
CREATE INDEX orders_customer ON public.orders (customer_id);

CREATE TABLE public.orders_2026_01 PARTITION OF public.orders FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE public.orders_2026_02 PARTITION OF public.orders FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE TABLE public.orders_2026_03 PARTITION OF public.orders FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
CREATE TABLE public.orders_2026_04 PARTITION OF public.orders FOR VALUES FROM ('2026-04-01') TO ('2026-05-01');
CREATE TABLE public.orders_2026_05 PARTITION OF public.orders FOR VALUES FROM ('2026-05-01') TO ('2026-06-01');
CREATE TABLE public.orders_2026_06 PARTITION OF public.orders FOR VALUES FROM ('2026-06-01') TO ('2026-07-01');
CREATE TABLE public.orders_2026_07 PARTITION OF public.orders FOR VALUES FROM ('2026-07-01') TO ('2026-08-01');
CREATE TABLE public.orders_2026_08 PARTITION OF public.orders FOR VALUES FROM ('2026-08-01') TO ('2026-09-01');
CREATE TABLE public.orders_2026_09 PARTITION OF public.orders FOR VALUES FROM ('2026-09-01') TO ('2026-10-01');
CREATE TABLE public.orders_2026_10 PARTITION OF public.orders FOR VALUES FROM ('2026-10-01') TO ('2026-11-01');
CREATE TABLE public.orders_2026_11 PARTITION OF public.orders FOR VALUES FROM ('2026-11-01') TO ('2026-12-01');
CREATE TABLE public.orders_2026_12 PARTITION OF public.orders FOR VALUES FROM ('2026-12-01') TO ('2027-01-01');

CREATE TABLE public.tickets (
    id          integer PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES public.customers,
    subject     text NOT NULL,
    body        text NOT NULL,
    status      text NOT NULL CHECK (status IN ('open', 'waiting', 'closed')),
    created_at  timestamptz NOT NULL
);
COMMENT ON TABLE public.tickets IS 'Support tickets, as customers wrote them: untrusted text.';
CREATE INDEX tickets_customer ON public.tickets (customer_id);
CREATE INDEX tickets_open ON public.tickets (created_at) WHERE status = 'open';

CREATE VIEW public.customer_orders AS
SELECT c.id AS customer_id, c.name, c.email, count(o.id) AS orders, coalesce(sum(o.total), 0) AS total
FROM public.customers c LEFT JOIN public.orders o ON o.customer_id = c.id
GROUP BY c.id, c.name, c.email;
COMMENT ON VIEW public.customer_orders IS 'Each customer with the number and the sum of their orders.';

CREATE VIEW public.customer_contacts AS SELECT id, name, email FROM public.customers;
COMMENT ON VIEW public.customer_contacts IS 'How to reach a customer.';

CREATE FUNCTION public.order_total(customer integer) RETURNS numeric
LANGUAGE sql STABLE
RETURN (SELECT coalesce(sum(total), 0) FROM public.orders WHERE customer_id = customer);
COMMENT ON FUNCTION public.order_total(integer) IS 'The sum of a customer''s orders, in US dollars.';

SET ROLE hr_owner;

CREATE TABLE hr.employees (
    id     integer PRIMARY KEY,
    name   text NOT NULL,
    email  text NOT NULL UNIQUE,
    salary numeric NOT NULL,
    ssn    varchar(11) NOT NULL
);
COMMENT ON TABLE hr.employees IS 'Payroll. For HR alone.';
CREATE VIEW hr.headcount AS SELECT count(*) AS employees FROM hr.employees;
GRANT SELECT ON ALL TABLES IN SCHEMA hr TO countersign_gateway;

RESET ROLE;
