"""Django through one door, as an application uses it: prints what it found as JSON. Run by test_django.py.

Arguments: host, port, user, database; the password comes from PGPASSWORD.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command

host, port, user, database = sys.argv[1:5]
settings.configure(
    INSTALLED_APPS=[],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": host,
            "PORT": port,
            "USER": user,
            "PASSWORD": os.environ["PGPASSWORD"],
            "NAME": database,
        }
    },
    USE_TZ=True,
)
django.setup()

from django.db import DatabaseError, connection, models, transaction  # noqa: E402 - Django must be set up first


class Ticket(models.Model):
    """The sample shop's table."""

    customer_id = models.IntegerField()
    subject = models.TextField()
    body = models.TextField()
    status = models.TextField()
    created_at = models.DateTimeField()

    class Meta:
        """Django makes nothing here."""

        app_label, db_table, managed = "shop", "tickets", False


class Customer(models.Model):
    """A table with masked columns."""

    name = models.TextField()
    ssn = models.TextField()
    card = models.TextField(null=True)

    class Meta:
        """Django makes nothing here."""

        app_label, db_table, managed = "shop", "customers", False


def inspected() -> str:
    """What `inspectdb` writes, with views and partitions."""
    written = io.StringIO()
    call_command("inspectdb", include_views=True, include_partitions=True, stdout=written)
    return written.getvalue()


def errors() -> dict[str, Any]:
    """SQLSTATEs inside of nested atomic blocks, and that the outer block goes on."""
    found: dict[str, Any] = {}
    with transaction.atomic():
        for name, sql in (("division", "SELECT 1/0"), ("refused", "DROP TABLE orders")):
            try:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute(sql)
            except DatabaseError as error:
                cause: Any = error.__cause__
                found[name] = [cause.sqlstate, cause.diag.message_detail, cause.diag.message_hint]
        found["goes on"] = Ticket.objects.filter(id=1).count()
    return found


def written() -> list[Any]:
    """Rows changed by the ORM, and changed back: with a condition, by primary key, in a block that is rolled back."""
    before = Ticket.objects.get(pk=1).status
    changed = [Ticket.objects.filter(pk=1).update(status="closed"), Ticket.objects.get(pk=1).status]
    Ticket.objects.filter(pk=1).update(status=before)
    try:
        with transaction.atomic():
            Ticket.objects.filter(pk=1).update(status="open")
            raise RuntimeError("rolled back")
    except RuntimeError:
        changed.append(Ticket.objects.get(pk=1).status == before)
    return changed


def main() -> None:
    """Everything, as one JSON object."""
    chunked = [ticket.pk for ticket in Ticket.objects.order_by("pk").iterator(chunk_size=7)]
    found = {
        "inspectdb": inspected(),
        "chunked": [len(chunked), chunked == sorted(set(chunked))],
        "customer": list(Customer.objects.filter(name__contains="a").order_by("pk").values_list("ssn", "card")[:3]),
        "errors": errors(),
        "written": written(),
        "aggregate": Ticket.objects.filter(subject__iregex="^[a-m]").values("status").distinct().count(),
    }
    json.dump(found, sys.stdout)


main()
