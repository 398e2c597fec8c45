// Calls a server of the integration tests with connect-es, and prints one line for each case.
//
//     node client.mjs <base URL>

import assert from "node:assert/strict";
import * as http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

import { create, createRegistry } from "@bufbuild/protobuf";
import { anyPack, anyUnpack, timestampNow } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient, decodeBinaryHeader, encodeBinaryHeader } from "@connectrpc/connect";
import { compressionBrotli, compressionGzip, createConnectTransport } from "@connectrpc/connect-node";

import {
  EchoRequestSchema,
  Mood,
  OtherService,
  PingRequestSchema,
  PingResponseSchema,
  ProbeService,
} from "./gen/integration_pb.js";

const url = process.argv[2];
const CASE_MS = 10_000;

/** An agent that counts the connections it makes, and keeps the methods of its requests. */
class WatchingAgent extends http.Agent {
  made = 0;
  methods = [];

  createConnection(...args) {
    this.made += 1;
    return super.createConnection(...args);
  }

  addRequest(request, ...args) {
    this.methods.push(request.method);
    return super.addRequest(request, ...args);
  }
}

const agents = [];

/** A client, and the agent that its requests go through. */
function make(options = {}, { service = ProbeService, path = "", sockets = Infinity } = {}) {
  const agent = new WatchingAgent({ keepAlive: true, maxSockets: sockets });
  agents.push(agent);
  const nodeOptions = { agent };
  const transport = createConnectTransport({ baseUrl: url + path, httpVersion: "1.1", nodeOptions, ...options });
  return { client: createClient(service, transport), agent };
}

async function all(stream) {
  const messages = [];
  for await (const message of stream) {
    messages.push(message);
  }
  return messages;
}

async function* each(messages, delayMs = 0) {
  for (const message of messages) {
    yield message;
    await sleep(delayMs);
  }
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return ConnectError.from(error);
  }
  return assert.fail("no error");
}

/** Reads a stream that fails. */
async function broken(stream) {
  const messages = [];
  try {
    for await (const message of stream) {
      messages.push(message);
    }
  } catch (error) {
    return [messages, ConnectError.from(error)];
  }
  return assert.fail("no error");
}

/** Keeps the headers and trailers of a call. */
function metadata() {
  const kept = { headers: undefined, trailers: undefined };
  kept.options = {
    onHeader: (headers) => (kept.headers = headers),
    onTrailer: (trailers) => (kept.trailers = trailers),
  };
  return kept;
}

/** The headers that the server has seen, by their names in lower case. */
function seen(response) {
  return new Map(response.headers.map((header) => [header.name.toLowerCase(), header.values]));
}

const numbers = (messages) => messages.map((message) => message.number);
const upTo = (count) => Array.from({ length: count }, (_, index) => index + 1);

/** Calls of all kinds, each answer looked at. */
async function allKinds(client) {
  const text = "long enough to be compressed ".repeat(200);
  const echoed = await client.echo({ text });
  assert.equal(echoed.request.text, text);
  assert.deepEqual(numbers(await all(client.count({ upTo: 5, padding: 2000 }))), upTo(5));
  const padding = new Uint8Array(2000);
  const sum = await client.sum(each(upTo(4).map((number) => ({ number: BigInt(number), padding }))));
  assert.equal(sum.sum, 10n);
  const answers = await all(client.chat(each(["a", text, ""].map((each) => ({ text: each })))));
  assert.deepEqual(answers.map((answer) => answer.text), ["a", text, ""]);
}

const CODECS = { proto: { useBinaryFormat: true }, json: { useBinaryFormat: false } };
const CASES = {};

for (const [codec, options] of Object.entries(CODECS)) {
  CASES[`${codec}: values of every type`] = async () => {
    const request = create(EchoRequestSchema, {
      text: "\u00e4\u{1f600}\0",
      data: new Uint8Array([0, 255, 128]),
      number: -(2n ** 63n),
      ratio: -1e-300,
      mood: Mood.GOOD,
      child: { child: { text: "deep" } },
      counts: { a: 1, "": -5 },
      any: anyPack(PingRequestSchema, create(PingRequestSchema, { text: "hello" })),
      when: timestampNow(),
      duration: { seconds: -3n, nanos: -5 },
      struct: { a: null, b: [1, "x", true], c: { d: {} } },
    });
    // JSON needs to know what an Any holds, on either side.
    const jsonOptions = { registry: createRegistry(PingRequestSchema) };
    const response = await make({ ...options, jsonOptions }).client.echo(request);
    assert.deepEqual(response.request, request);
    assert.equal(anyUnpack(response.request.any, PingRequestSchema).text, "hello");
    assert.equal(seen(response).get("content-type")[0], `application/${codec}`);
    assert.ok(seen(response).get("user-agent")[0].startsWith("connect-es/"));
  };

  CASES[`${codec}: all kinds, one connection`] = async () => {
    const { client, agent } = make(options, { sockets: 1 });
    for (let round = 0; round < 10; round += 1) {
      await allKinds(client);
      assert.equal((await failure(client.echo({ misdeed: "error=ABORTED" }))).code, Code.Aborted);
    }
    // A stream that ends with an error is another matter: the client itself drops its connection.
    assert.equal(agent.made, 1);
  };

  for (const [name, compression] of Object.entries({ gzip: compressionGzip, br: compressionBrotli })) {
    CASES[`${codec}: ${name}`] = async () => {
      const compressed = { ...options, sendCompression: compression, acceptCompression: [compression] };
      const { client } = make(compressed);
      await allKinds(client);
      const kept = metadata();
      const response = await client.echo({ text: "x".repeat(5000) }, kept.options);
      assert.deepEqual(seen(response).get("content-encoding"), [name]);
      assert.equal(kept.headers.get("content-encoding"), name);
      await all(client.count({ upTo: 3, padding: 5000 }, kept.options));
      assert.equal(kept.headers.get("connect-content-encoding"), name);
    };
  }

  CASES[`${codec}: nothing compressed`] = async () => {
    const kept = metadata();
    const { client } = make({ ...options, acceptCompression: [] });
    await allKinds(client);
    await client.echo({ text: "x".repeat(5000) }, kept.options);
    assert.equal(kept.headers.get("content-encoding"), null);
  };

  CASES[`${codec}: GET`] = async () => {
    const { client, agent } = make({ ...options, useHttpGet: true });
    const text = "\u00e4 +/?&%=#";
    const response = await client.look({ text, data: new Uint8Array([251, 255]), number: -1n });
    assert.equal(response.request.text, text);
    assert.deepEqual([...response.request.data], [251, 255]);
    assert.equal(seen(response).get("content-type"), undefined);
    const kept = metadata();
    await client.look({ misdeed: "metadata" }, kept.options);
    assert.equal(kept.trailers.get("x-tail"), "3, 4");
    assert.equal((await failure(client.look({ misdeed: "error=ABORTED" }))).code, Code.Aborted);
    await client.echo({ text });
    assert.deepEqual(agent.methods, ["GET", "GET", "GET", "POST"]);
  };

  CASES[`${codec}: errors of every code`] = async () => {
    const { client } = make(options);
    const codes = Object.keys(Code).filter((name) => Number.isNaN(Number(name)));
    assert.equal(codes.length, 16);
    for (const name of codes) {
      const upper = name.replace(/(?<!^)([A-Z])/g, "_$1").toUpperCase();
      const error = await failure(client.echo({ misdeed: `error=${upper}` }));
      assert.equal(error.code, Code[name]);
      assert.equal(error.rawMessage, `this is ${upper}`);
    }
  };

  CASES[`${codec}: an error with details, headers and trailers`] = async () => {
    const error = await failure(make(options).client.echo({ misdeed: "error with metadata" }));
    assert.equal(error.code, Code.Aborted);
    assert.deepEqual(error.findDetails(PingRequestSchema).map((detail) => detail.text), ["detail"]);
    assert.equal(error.metadata.get("x-head"), "1");
    assert.equal(error.metadata.get("x-tail"), "2");
  };

  CASES[`${codec}: errors of streams`] = async () => {
    const { client } = make(options);
    let [messages, error] = await broken(client.count({ upTo: 3, misdeed: "error last" }));
    assert.deepEqual(numbers(messages), [1, 2, 3]);
    assert.equal(error.code, Code.NotFound);
    assert.equal(error.rawMessage, "enough");
    assert.deepEqual(error.findDetails(PingRequestSchema).map((detail) => detail.text), ["detail"]);
    [messages, error] = await broken(client.count({ misdeed: "error at once" }));
    assert.deepEqual([messages, error.code], [[], Code.NotFound]);
    error = await failure(client.sum(each([{ number: 1n }, { misdeed: "error" }, { number: 2n }])));
    assert.equal(error.code, Code.NotFound);
    [messages, error] = await broken(client.chat(each([{ text: "a" }, { misdeed: "error" }, { text: "b" }])));
    assert.deepEqual(messages.map((message) => message.text), ["a"]);
    assert.equal(error.code, Code.NotFound);
    // What a handler did not mean to tell stays with the server.
    error = await failure(client.echo({ misdeed: "raise=ValueError" }));
    assert.equal(error.code, Code.Unknown);
    assert.ok(!error.message.includes("secret"));
  };

  CASES[`${codec}: headers and trailers`] = async () => {
    const { client } = make(options);
    const binary = new Uint8Array([0, 1, 254, 255]);
    const headers = { "x-text": "a, b", "x-data-bin": encodeBinaryHeader(binary) };
    for (const call of [
      (options) => client.echo({ misdeed: "metadata" }, options),
      (options) => all(client.count({ upTo: 1, misdeed: "metadata" }, options)),
    ]) {
      const kept = metadata();
      const response = await call({ headers, ...kept.options });
      assert.equal(kept.headers.get("x-head"), "1, 2");
      assert.equal(kept.trailers.get("x-tail"), "3, 4");
      if (response.headers !== undefined) {
        assert.equal(seen(response).get("x-text").join(", "), "a, b");
        assert.deepEqual([...decodeBinaryHeader(seen(response).get("x-data-bin")[0])], [...binary]);
      }
    }
  };

  CASES[`${codec}: deadlines`] = async () => {
    const { client } = make(options);
    const response = await client.echo({}, { timeoutMs: 5000 });
    assert.ok(response.timeoutMs > 4000n && response.timeoutMs <= 5000n);
    const began = Date.now();
    let error = await failure(client.echo({ delayMs: 1500 }, { timeoutMs: 100 }));
    assert.equal(error.code, Code.DeadlineExceeded);
    let messages;
    [messages, error] = await broken(client.count({ upTo: 1000, delayMs: 20 }, { timeoutMs: 200 }));
    assert.equal(error.code, Code.DeadlineExceeded);
    assert.ok(messages.length < 12);
    // The server's own, of which the client knows nothing.
    const hasty = make(options, { path: "/hasty" }).client;
    error = await failure(hasty.echo({ delayMs: 400 }));
    assert.equal(error.code, Code.DeadlineExceeded);
    [messages, error] = await broken(hasty.count({ upTo: 1000, delayMs: 20 }));
    assert.equal(error.code, Code.DeadlineExceeded);
    assert.ok(messages.length > 0 && messages.length < 12);
    assert.ok(Date.now() - began < 3000);
  };

  CASES[`${codec}: left in the middle, and the next call`] = async () => {
    const { client, agent } = make(options, { sockets: 1 });
    await client.notes({});
    const name = `left ${codec}`;
    // Leaving the loop is not enough for this client: only a signal ends its calls.
    let controller;
    const signal = () => (controller = new AbortController()).signal;
    async function* abortAt(stream, index) {
      for await (const message of stream) {
        yield message;
        index -= 1;
        if (index === 0) {
          controller.abort();
        }
      }
    }
    for (const index of [1, 3]) {
      const stream = client.count({ upTo: 1000, delayMs: 10, name }, { signal: signal() });
      const [messages, error] = await broken(abortAt(stream, index));
      assert.deepEqual(numbers(messages), upTo(index));
      assert.equal(error.code, Code.Canceled);
      await allKinds(client);
    }
    const texts = each(Array(1000).fill({ text: "x" }), 5);
    setTimeout(() => controller.abort(), 100);
    const [, error] = await broken(client.chat(texts, { signal: signal() }));
    assert.equal(error.code, Code.Canceled);
    await allKinds(client);
    for (const call of [
      (options) => client.echo({ delayMs: 400 }, options),
      (options) => client.sum(each(Array(1000).fill({ number: 1n }), 5), options),
    ]) {
      setTimeout(() => controller.abort(), 50);
      assert.equal((await failure(call({ signal: signal() }))).code, Code.Canceled);
      await allKinds(client);
    }
    assert.equal(agent.made, 6);
    // Both handlers have run to their end, soon.
    let notes = [];
    for (let round = 0; round < 50 && notes.filter((note) => note === `${name}: end`).length < 2; round += 1) {
      notes = notes.concat((await client.notes({})).notes);
      await sleep(20);
    }
    assert.equal(notes.filter((note) => note === `${name}: begin`).length, 2);
    assert.equal(notes.filter((note) => note === `${name}: end`).length, 2);
  };

  CASES[`${codec}: large and too large`] = async () => {
    const { client } = make(options);
    const response = await client.echo({ data: new Uint8Array(2_000_000).fill(7) });
    assert.equal(response.request.data.length, 2_000_000);
    let error = await failure(client.echo({ data: new Uint8Array(6_000_000) }));
    assert.equal(error.code, Code.ResourceExhausted);
    error = await failure(client.sum(each([{ number: 1n }, { padding: new Uint8Array(6_000_000) }])));
    assert.equal(error.code, Code.ResourceExhausted);
    assert.equal((await client.sum(each(Array(40).fill({ number: 1n, padding: new Uint8Array(200_000) })))).sum, 40n);
    assert.equal((await all(client.count({ upTo: 40, padding: 200_000 }))).length, 40);
    error = await failure(make({ ...options, readMaxBytes: 1000 }).client.echo({ text: "x".repeat(2000) }));
    assert.equal(error.code, Code.ResourceExhausted);
    await allKinds(client);
  };

  CASES[`${codec}: empty`] = async () => {
    const { client } = make(options);
    assert.equal((await client.sum(each([]))).messages, 0);
    assert.deepEqual(await all(client.chat(each([]))), []);
    assert.deepEqual(await all(client.count({})), []);
    const { client: other } = make(options, { service: OtherService });
    assert.deepEqual(await other.ping({}), create(PingResponseSchema));
  };

  CASES[`${codec}: what is not there`] = async () => {
    const { client } = make(options);
    assert.equal((await failure(client.missing({}))).code, Code.Unimplemented);
    const elsewhere = make(options, { path: "/elsewhere" }).client;
    assert.equal((await failure(elsewhere.echo({}))).code, Code.Unimplemented);
    assert.equal((await broken(elsewhere.count({})))[1].code, Code.Unimplemented);
    assert.equal((await failure(elsewhere.sum(each([{}, {}])))).code, Code.Unimplemented);
  };

  CASES[`${codec}: mounted, and strict about the protocol's version`] = async () => {
    for (const path of ["/mounted", "/deep/er", "/strict", "/prefixed"]) {
      await allKinds(make({ ...options, useHttpGet: true }, { path }).client);
    }
  };

  CASES[`${codec}: many at once`] = async () => {
    const { client } = make(options, { sockets: 6 });
    await Promise.all(Array.from({ length: 60 }, () => allKinds(client)));
  };
}

let failed = 0;
for (const [name, run] of Object.entries(CASES)) {
  const began = Date.now();
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not over after ${CASE_MS} ms`)), CASE_MS);
  });
  try {
    await Promise.race([run(), late]);
    console.log(`ok    ${name} (${Date.now() - began} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}: ${error?.stack ?? error}`);
  } finally {
    clearTimeout(timer);
    agents.splice(0).forEach((agent) => agent.destroy());
  }
}
console.log(`${Object.keys(CASES).length} cases, ${failed} failed`);
process.exit(failed ? 1 : 0);
