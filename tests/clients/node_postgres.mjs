// node-postgres through the wire door, as applications use it. Run by test_node.py, which sets the environment.

import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import pg from 'pg'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'

const as = (who) => ({
  host: process.env.DOOR_HOST,
  port: Number(process.env.DOOR_PORT),
  database: process.env.DOOR_DATABASE,
  user: who,
  password: process.env[`TOKEN_${who.toUpperCase()}`],
})

const agent = new pg.Client(as('devin'))
const dba = new pg.Client(as('grace'))
await Promise.all([agent.connect(), dba.connect()])
after(() => Promise.all([agent.end(), dba.end()]))

const rejects = async (promise, expected) => {
  const error = await promise.then(() => assert.fail('it did not fail'), (error) => error)
  for (const [name, value] of Object.entries(expected)) {
    if (value instanceof RegExp) assert.match(error[name], value)
    else assert.equal(error[name], value, name)
  }
}

test('types arrive as JavaScript knows them', async () => {
  const { rows: [row], rowCount, command, fields } = await agent.query(
    `SELECT 1::int4 AS i, 9007199254740993::int8 AS big, 1.50::numeric AS n, true AS t, NULL::text AS none,
            'süß 😀' AS text, '{"a": [1, null]}'::jsonb AS j, ARRAY[1, NULL, 3] AS a, '\\xdead'::bytea AS bytes,
            '2026-11-24 10:00+00'::timestamptz AS at`)
  assert.deepEqual(row, {
    i: 1, big: '9007199254740993', n: '1.50', t: true, none: null, text: 'süß 😀', j: { a: [1, null] },
    a: [1, null, 3], bytes: Buffer.from('dead', 'hex'), at: new Date('2026-11-24T10:00:00Z'),
  })
  assert.deepEqual([rowCount, command, fields[0].dataTypeID], [1, 'SELECT', 23])
})

test('parameters, with and without a statement name, in text and binary', async () => {
  for (let n = 0; n < 3; n += 1) {
    const { rows } = await agent.query({ name: 'add', text: 'SELECT $1::int + $2::int AS sum', values: [n, 40] })
    assert.deepEqual(rows, [{ sum: n + 40 }])
  }
  const { rows } = await agent.query('SELECT $1::text AS a, $2::bytea AS b, $3::int[] AS c, $4::jsonb AS d',
    ["it's", Buffer.from([0, 255]), [1, null], { k: 'v' }])
  assert.deepEqual(rows, [{ a: "it's", b: Buffer.from([0, 255]), c: [1, null], d: { k: 'v' } }])
  const binary = await agent.query({ text: 'SELECT $1::int4 AS n', values: [7], binary: true })
  assert.deepEqual(binary.rows, [{ n: 7 }])
})

test('rows as arrays, and several statements in one text', async () => {
  const arrays = await agent.query({ text: 'SELECT id, status FROM tickets ORDER BY id LIMIT 2', rowMode: 'array' })
  assert.equal(arrays.rows[0][0], 1)
  const several = await agent.query('SELECT 1 AS one; SELECT 2 AS two')
  assert.deepEqual(several.map((result) => result.rows), [[{ one: 1 }], [{ two: 2 }]])
})

test('rows are made, changed and deleted, in transactions with savepoints', async () => {
  const made = await dba.query(
    `INSERT INTO tickets (id, customer_id, subject, body, status, created_at)
     VALUES ($1, 1, $2, '', 'open', now()) RETURNING id, subject`, [880001, 'from node'])
  assert.deepEqual(made.rows, [{ id: 880001, subject: 'from node' }])
  await agent.query('BEGIN')
  await agent.query('SAVEPOINT before')
  await rejects(agent.query('INSERT INTO tickets SELECT * FROM tickets WHERE id = 880001'), { code: '23505' })
  await agent.query('ROLLBACK TO before')
  assert.equal((await agent.query("UPDATE tickets SET status = 'closed' WHERE id = $1", [880001])).rowCount, 1)
  await agent.query('COMMIT')
  assert.deepEqual((await dba.query('DELETE FROM tickets WHERE id = 880001 RETURNING status')).rows, [{ status: 'closed' }])
})

test('masked columns are masked, in a plain, a prepared and a binary result', async () => {
  const text = 'SELECT ssn, card, notes FROM customers WHERE id = $1'
  const [plain] = (await agent.query('SELECT ssn, card, notes FROM customers WHERE id = 5')).rows
  assert.match(plain.ssn, /^\*{7}\d{4}$/)
  assert.deepEqual([plain.card, plain.notes], ['[redacted]', null])
  for (const binary of [false, true]) {
    assert.deepEqual((await agent.query({ name: `masked ${binary}`, text, values: [5], binary })).rows, [plain])
  }
  assert.match((await dba.query(text, [5])).rows[0].ssn, /^\d{3}-\d\d-\d{4}$/)
})

test('a cursor reads in parts, and what is left is given up', async () => {
  const cursor = agent.query(new Cursor('SELECT g FROM generate_series(1, $1) AS g', [1000]))
  assert.deepEqual((await cursor.read(2)).map((row) => row.g), [1, 2])
  assert.deepEqual((await cursor.read(3)).map((row) => row.g), [3, 4, 5])
  await cursor.close()
  assert.deepEqual((await agent.query('SELECT 1 AS one')).rows, [{ one: 1 }])
})

test('a stream reads to the end', async () => {
  let sum = 0
  const stream = agent.query(new QueryStream('SELECT g FROM generate_series(1, 2500) AS g', [], { batchSize: 100 }))
  for await (const row of stream) sum += row.g
  assert.equal(sum, 2500 * 2501 / 2)
})

test('a pool reuses connections, after errors and refusals too', async () => {
  const pool = new pg.Pool({ ...as('devin'), max: 3 })
  const answers = await Promise.all(Array.from({ length: 12 }, (_, n) => pool.query('SELECT $1::int AS n', [n])))
  assert.deepEqual(answers.map((answer) => answer.rows[0].n), Array.from({ length: 12 }, (_, n) => n))
  await rejects(pool.query('SELECT 1/0'), { code: '22012' })
  await rejects(pool.query('DROP TABLE orders'), { code: '42501' })
  assert.deepEqual((await pool.query('SELECT 1 AS one')).rows, [{ one: 1 }])
  assert.ok(pool.totalCount <= 3)
  await pool.end()
})

test('an error has its place in the text that the client sent', async () => {
  await rejects(agent.query('SELECT id, nme FROM tickets'), { code: '42703', position: '12', severity: 'ERROR' })
  await rejects(agent.query("SELECT 'süß', ssn, nme FROM customers WHERE id = $1", [1]), { code: '42703', position: '20' })
  await rejects(agent.query('SELEC 1'), { code: '42601', position: '1' })
})

test('a refusal names the rule and the cure', async () => {
  await rejects(agent.query('DROP TABLE orders'), { code: '42501', detail: /agents-never-drop/, hint: /./ })
  await rejects(agent.query('SELECT * FROM hr.employees WHERE id = $1', [1]), { code: '42501', message: /hr\.employees/ })
})

test('a notification arrives', async () => {
  const heard = new Promise((resolve) => dba.once('notification', resolve))
  await dba.query('LISTEN node')
  await dba.query("NOTIFY node, 'hello'")
  const { channel, payload } = await heard
  assert.deepEqual([channel, payload], ['node', 'hello'])
})

test('what runs is cancelled by its key', async () => {
  const query = new pg.Query('SELECT count(*) FROM generate_series(1, 1000000000)')
  const running = new Promise((resolve, reject) => { query.on('error', reject); query.on('end', resolve) })
  agent.query(query)
  // A request that overtakes its statement finds nothing to cancel, so it is sent until it has.
  const again = setInterval(() => new pg.Client(as('devin')).cancel(agent, query), 50)
  await rejects(running, { code: '57014' }).finally(() => clearInterval(again))
  assert.deepEqual((await agent.query('SELECT 1 AS one')).rows, [{ one: 1 }])
})

test('a pipeline is answered in order, with an error in its middle', async () => {
  const client = new pg.Client({ ...as('devin'), pipeline: true })
  await client.connect()
  const sent = ['SELECT 1 AS n', 'SELECT 1/0 AS n', 'DROP TABLE orders', 'SELECT 4 AS n']
  const answers = await Promise.allSettled(sent.map((text) => client.query(text)))
  assert.deepEqual(answers.map((a) => a.value?.rows[0].n ?? a.reason.code), [1, '22012', '42501', 4])
  await client.end()
})
