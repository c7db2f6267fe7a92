// postgres.js through the wire door, as applications use it. Run by test_node.py, which sets the environment.

import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import postgres from 'postgres'

const as = (who, options) => postgres({
  host: process.env.DOOR_HOST,
  port: Number(process.env.DOOR_PORT),
  database: process.env.DOOR_DATABASE,
  user: who,
  password: process.env[`TOKEN_${who.toUpperCase()}`],
  onnotice: () => {},
  ...options,
})

const agent = as('devin', { max: 4 })
const dba = as('grace', { max: 2 })
after(() => Promise.all([agent.end(), dba.end()]))

const rejects = async (promise, expected) => {
  const error = await promise.then(() => assert.fail('it did not fail'), (error) => error)
  for (const [name, value] of Object.entries(expected)) {
    if (value instanceof RegExp) assert.match(error[name], value)
    else assert.equal(error[name], value, name)
  }
}

test('its own types are fetched, so that arrays are arrays', async () => {
  const [row] = await agent`SELECT ARRAY[1, 2, 3] AS a, ARRAY['x', 'süß 😀'] AS texts, ${[1, 2]}::int[] AS sent`
  assert.deepEqual({ ...row }, { a: [1, 2, 3], texts: ['x', 'süß 😀'], sent: [1, 2] })
})

test('types arrive as JavaScript knows them', async () => {
  const [row] = await agent`SELECT 1 AS i, 9007199254740993::int8 AS big, ${{ a: [1, null] }}::jsonb AS j,
    '\\xdead'::bytea AS bytes, ${new Date('2026-11-24T10:00:00Z')}::timestamptz AS at, NULL AS none`
  assert.deepEqual({ ...row }, {
    i: 1, big: '9007199254740993', j: { a: [1, null] }, bytes: Buffer.from('dead', 'hex'),
    at: new Date('2026-11-24T10:00:00Z'), none: null,
  })
})

test('what is sent at once is pipelined and answered in order, with errors in the middle', async () => {
  const one = as('devin', { max: 1 })
  const answers = await Promise.allSettled([
    one`SELECT 1 AS n`, one`SELECT 1/0 AS n`, one`SELECT ${3}::int AS n`, one.unsafe('DROP TABLE orders'), one`SELECT 5 AS n`,
  ])
  assert.deepEqual(answers.map((a) => a.value?.[0].n ?? a.reason.code), [1, '22012', 3, '42501', 5])
  await one.end()
})

test('helpers insert and update, and RETURNING returns', async () => {
  const tickets = [880101, 880102].map((id) => (
    { id, customer_id: 1, subject: 'from postgres.js', body: '', status: 'open', created_at: new Date() }))
  const made = await dba`INSERT INTO tickets ${dba(tickets)} RETURNING id`
  assert.deepEqual(made.map((row) => row.id), [880101, 880102])
  const changed = await agent`UPDATE tickets SET ${agent({ status: 'closed' })} WHERE id IN ${agent([880101, 880102])}`
  assert.equal(changed.count, 2)
  const gone = await dba`DELETE FROM tickets WHERE subject = 'from postgres.js' RETURNING status`
  assert.deepEqual(gone.map((row) => row.status), ['closed', 'closed'])
})

test('begin with an isolation level, savepoints, and a rollback by an error', async () => {
  const level = await agent.begin('ISOLATION LEVEL SERIALIZABLE', async (sql) => {
    await sql.savepoint((inner) => inner`SELECT 1/0`).catch((error) => assert.equal(error.code, '22012'))
    return (await sql`SHOW transaction_isolation`)[0].transaction_isolation
  })
  assert.equal(level, 'serializable')
  await rejects(agent.begin(async (sql) => { await sql`SELECT 1`; await sql`SELECT * FROM hr.employees` }), { code: '42501' })
})

test('a cursor reads in parts', async () => {
  const seen = []
  for await (const rows of agent`SELECT g FROM generate_series(1, 25) AS g`.cursor(10)) seen.push(rows.length)
  assert.deepEqual(seen, [10, 10, 5])
  await agent`SELECT g FROM generate_series(1, 100) AS g`.cursor(10, () => agent.CLOSE)
})

test('rows one by one, as values, and raw', async () => {
  let sum = 0
  await agent`SELECT g FROM generate_series(1, 100) AS g`.forEach((row) => { sum += row.g })
  assert.equal(sum, 5050)
  assert.deepEqual(await agent`SELECT 1, 'x'`.values().then((rows) => [...rows]), [[1, 'x']])
  assert.deepEqual((await agent`SELECT 'x'`.raw())[0], [Buffer.from('x')])
})

test('describe tells parameters and columns, and runs nothing', async () => {
  const { types, columns } = await agent`SELECT id, subject FROM tickets WHERE id = ${1}`.describe()
  assert.deepEqual([types, columns.map((column) => column.name)], [[23], ['id', 'subject']])
})

test('COPY goes out and in', async () => {
  const out = await agent`COPY (SELECT id, ssn FROM customers WHERE id <= 2 ORDER BY id) TO STDOUT`.readable()
  let text = ''
  for await (const piece of out) text += piece
  assert.match(text, /^1\t\*{7}\d{4}\n2\t\*{7}\d{4}\n$/)
  const rows = [1, 2, 3].map((n) => `88020${n}\t1\tcopied by node\t\topen\t2026-01-01 00:00:00+00\n`)
  await pipeline(Readable.from(rows), await dba`COPY tickets (id, customer_id, subject, body, status, created_at) FROM STDIN`.writable())
  assert.equal((await dba`DELETE FROM tickets WHERE subject = 'copied by node'`).count, 3)
})

test('masked columns are masked', async () => {
  const [row] = await agent`SELECT ssn, card, notes FROM customers WHERE id = ${5}`
  assert.match(row.ssn, /^\*{7}\d{4}$/)
  assert.deepEqual([row.card, row.notes], ['[redacted]', null])
  assert.match((await dba`SELECT ssn FROM customers WHERE id = ${5}`)[0].ssn, /^\d{3}-\d\d-\d{4}$/)
})

test('an error has its place, a refusal its rule and cure', async () => {
  await rejects(agent`SELECT id, nme FROM tickets`, { code: '42703', position: '12' })
  await rejects(agent`SELECT 'süß', ssn, nme FROM customers WHERE id = ${1}`, { code: '42703', position: '20' })
  await rejects(agent.unsafe('DROP TABLE orders'), { code: '42501', detail: /agents-never-drop/, hint: /./ })
})

test('a running query is cancelled', async () => {
  const query = agent`SELECT count(*) FROM generate_series(1, 1000000000)`
  const running = query.execute()
  const again = setInterval(() => query.cancel(), 50)
  await rejects(running, { code: '57014' }).finally(() => clearInterval(again))
  assert.equal((await agent`SELECT 1 AS one`)[0].one, 1)
})

test('listen hears what notify says', async () => {
  let heard
  const told = new Promise((resolve) => { heard = resolve })
  const { unlisten } = await dba.listen('postgresjs', heard)
  await dba.notify('postgresjs', 'hello')
  assert.equal(await told, 'hello')
  await unlisten()
})
