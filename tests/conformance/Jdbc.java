// JDBC through the wire door, as applications use it. Run by jdbc.py; arguments: URL, the agent's and the DBA's token.

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

public class Jdbc {
    interface Check { void run() throws Exception; }

    static String url, agentToken, dbaToken;
    static int failed = 0;

    static Connection as(String user, String token, String... more) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", user);
        properties.setProperty("password", token);
        properties.setProperty("sslmode", "disable");
        for (int i = 0; i < more.length; i += 2) properties.setProperty(more[i], more[i + 1]);
        return DriverManager.getConnection(url, properties);
    }

    static Connection agent(String... more) throws SQLException { return as("devin", agentToken, more); }

    static Connection dba() throws SQLException { return as("grace", dbaToken); }

    static void check(String sentence, Check body) {
        try {
            body.run();
            System.out.println("ok      " + sentence);
        } catch (Throwable problem) {
            failed++;
            System.out.println("FAILED  " + sentence + ": " + problem);
        }
    }

    static void same(Object expected, Object found) {
        if (!String.valueOf(expected).equals(String.valueOf(found)))
            throw new AssertionError("expected " + expected + ", found " + found);
    }

    static ServerErrorMessage error(Check body) throws Exception {
        try {
            body.run();
        } catch (PSQLException error) {
            return error.getServerErrorMessage();
        }
        throw new AssertionError("it did not fail");
    }

    static String one(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        agentToken = arguments[1];
        dbaToken = arguments[2];

        for (String mode : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
            check("a prepared statement runs again and again, as text and then in binary: " + mode, () -> {
                try (Connection c = agent("preferQueryMode", mode, "prepareThreshold", "3");
                        PreparedStatement p = c.prepareStatement("SELECT ?::int + 1, ?::text, ?::numeric, ?::timestamptz")) {
                    for (int n = 0; n < 8; n++) {
                        p.setInt(1, n);
                        p.setString(2, "süß");
                        p.setBigDecimal(3, new java.math.BigDecimal("1.50"));
                        p.setTimestamp(4, new java.sql.Timestamp(0));
                        try (ResultSet rows = p.executeQuery()) {
                            rows.next();
                            same(n + 1, rows.getInt(1));
                            same("süß", rows.getString(2));
                            same("1.50", rows.getBigDecimal(3));
                            same(0L, rows.getTimestamp(4).getTime());
                        }
                    }
                }
            });
        }
        check("a batch inserts, updates and deletes, with generated keys", () -> {
            try (Connection c = dba()) {
                c.setAutoCommit(false);
                try (PreparedStatement p = c.prepareStatement(
                        "INSERT INTO tickets (id, customer_id, subject, body, status, created_at)"
                        + " VALUES (?, 1, 'from java', '', 'open', now())", new String[] {"id"})) {
                    for (int id = 880301; id <= 880310; id++) {
                        p.setInt(1, id);
                        p.addBatch();
                    }
                    same(10, p.executeBatch().length);
                    ResultSet keys = p.getGeneratedKeys();
                    keys.next();
                    same(880301, keys.getInt(1));
                }
                try (Statement s = c.createStatement()) {
                    same(10, s.executeUpdate("UPDATE tickets SET status = 'closed' WHERE subject = 'from java'"));
                    same(10, s.executeUpdate("DELETE FROM tickets WHERE subject = 'from java'"));
                }
                c.commit();
            }
        });
        check("a cursor fetches in parts", () -> {
            try (Connection c = agent()) {
                c.setAutoCommit(false);
                try (Statement s = c.createStatement()) {
                    s.setFetchSize(100);
                    ResultSet rows = s.executeQuery("SELECT g FROM generate_series(1, 2500) AS g");
                    long sum = 0;
                    while (rows.next()) sum += rows.getInt(1);
                    same(2500L * 2501 / 2, sum);
                }
                c.rollback();
            }
        });
        check("savepoints, and a transaction that failed", () -> {
            try (Connection c = agent()) {
                c.setAutoCommit(false);
                same("1", one(c, "SELECT 1"));
                Savepoint before = c.setSavepoint("before");
                same("22012", error(() -> one(c, "SELECT 1/0")).getSQLState());
                same("25P02", error(() -> one(c, "SELECT 1")).getSQLState());
                c.rollback(before);
                same("2", one(c, "SELECT 2"));
                c.commit();
            }
        });
        check("the catalog is described", () -> {
            try (Connection c = agent()) {
                List<String> tables = new ArrayList<>();
                try (ResultSet rows = c.getMetaData().getTables(null, "public", "%", new String[] {"TABLE", "VIEW"})) {
                    while (rows.next()) tables.add(rows.getString("TABLE_NAME"));
                }
                if (!tables.contains("customers") || !tables.contains("customer_orders")) throw new AssertionError(tables);
                for (String[] asked : new String[][] {{"customers", "7"}, {"tickets", "6"}}) {
                    int columns = 0;
                    try (ResultSet rows = c.getMetaData().getColumns(null, "public", asked[0], "%")) {
                        while (rows.next()) columns++;
                    }
                    same(asked[1], columns);
                }
                for (ResultSet rows : List.of(
                        c.getMetaData().getPrimaryKeys(null, "public", "customers"),
                        c.getMetaData().getImportedKeys(null, "public", "tickets"),
                        c.getMetaData().getIndexInfo(null, "public", "customers", false, false),
                        c.getMetaData().getSchemas(), c.getMetaData().getTypeInfo())) {
                    if (!rows.next()) throw new AssertionError("nothing found");
                    rows.close();
                }
            }
        });
        check("masked columns are masked, as text and in binary", () -> {
            try (Connection c = agent("prepareThreshold", "1");
                    PreparedStatement p = c.prepareStatement("SELECT ssn, card, notes FROM customers WHERE id = ?")) {
                for (int n = 0; n < 4; n++) {
                    p.setInt(1, 5);
                    try (ResultSet rows = p.executeQuery()) {
                        rows.next();
                        if (!rows.getString(1).matches("\\*{7}\\d{4}")) throw new AssertionError("not masked");
                        same("[redacted]", rows.getString(2));
                        same(null, rows.getString(3));
                    }
                }
            }
        });
        check("an error has its place, a refusal its rule and cure", () -> {
            try (Connection c = agent()) {
                ServerErrorMessage undefined = error(() -> one(c, "SELECT 'süß', ssn, nme FROM customers"));
                same("42703", undefined.getSQLState());
                same(20, undefined.getPosition());
                ServerErrorMessage refused = error(() -> one(c, "DROP TABLE orders"));
                same("42501", refused.getSQLState());
                if (!refused.getDetail().contains("agents-never-drop")) throw new AssertionError(refused.getDetail());
                if (refused.getHint().isEmpty()) throw new AssertionError("no hint");
                same("1", one(c, "SELECT 1"));
            }
        });
        check("a running statement is cancelled, by hand and by a time-out", () -> {
            try (Connection c = agent(); Statement s = c.createStatement()) {
                s.setQueryTimeout(1);
                String endless = "SELECT count(*) FROM generate_series(1, 1000000000)";
                same("57014", error(() -> s.executeQuery(endless)).getSQLState());
                same("1", one(c, "SELECT 1"));
            }
        });
        check("COPY goes out and in", () -> {
            try (Connection a = agent(); Connection d = dba()) {
                StringWriter out = new StringWriter();
                a.unwrap(PGConnection.class).getCopyAPI()
                    .copyOut("COPY (SELECT id, ssn FROM customers WHERE id = 1) TO STDOUT", out);
                if (!out.toString().matches("1\t\\*{7}\\d{4}\n")) throw new AssertionError("not masked");
                String rows = "880311\t1\tfrom java\t\topen\t2026-01-01 00:00:00+00\n";
                same(1L, d.unwrap(PGConnection.class).getCopyAPI().copyIn(
                    "COPY tickets (id, customer_id, subject, body, status, created_at) FROM STDIN", new StringReader(rows)));
                try (Statement s = d.createStatement()) {
                    same(1, s.executeUpdate("DELETE FROM tickets WHERE subject = 'from java'"));
                }
            }
        });
        check("a notification arrives", () -> {
            try (Connection c = dba(); Statement s = c.createStatement()) {
                s.execute("LISTEN java");
                s.execute("NOTIFY java, 'hello'");
                same("hello", c.unwrap(PGConnection.class).getNotifications(5000)[0].getParameter());
            }
        });
        System.exit(failed == 0 ? 0 : 1);
    }
}
