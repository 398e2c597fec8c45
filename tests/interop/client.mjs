// Calls a server of the integration tests with connect-es, and prints one line for each case.
//
//     node client.mjs <base URL> <protocol>/<HTTP version>/<codec>[/threads] ...
//
// such as grpc/2/proto. The protocols are connect, grpc-web and grpc, the HTTP versions 1.1 and 2, the codecs proto and
// json; "threads" says that each call takes one of a few threads. "refused/2/proto" stands for gRPC with a server that
// cannot serve it.

import assert from "node:assert/strict";
import * as http from "node:http";
import * as net from "node:net";

import { create, createRegistry } from "@bufbuild/protobuf";
import { anyPack, anyUnpack, timestampNow } from "@bufbuild/protobuf/wkt";
import { Code, createClient, decodeBinaryHeader, encodeBinaryHeader } from "@connectrpc/connect";
import {
  compressionBrotli,
  compressionGzip,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";

import {
  abortAt,
  all,
  broken,
  each,
  ended,
  eventually,
  failure,
  metadata,
  numbers,
  runCases,
  seen,
  upTo,
} from "./common.mjs";
import {
  EchoRequestSchema,
  Mood,
  OtherService,
  PingRequestSchema,
  PingResponseSchema,
  ProbeService,
} from "./gen/integration_pb.js";

const TRANSPORTS = { connect: createConnectTransport, "grpc-web": createGrpcWebTransport, grpc: createGrpcTransport };

const [url, ...settings] = process.argv.slice(2);

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

/** The same for HTTP/2: a session is a connection. */
class WatchingSessions extends Http2SessionManager {
  made = 0;
  methods = [];

  constructor() {
    const createConnection = (authority) => {
      this.made += 1;
      return net.connect(Number(authority.port), authority.hostname).setNoDelay();
    };
    super(url, {}, { createConnection });
  }

  request(method, ...args) {
    this.methods.push(method);
    return super.request(method, ...args);
  }

  destroy() {
    this.abort();
  }
}

const connections = [];

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

/** One question after the other, each sent when the last one has its answer. */
async function pingPong(client, rounds, options) {
  let answered;
  let next = new Promise((resolve) => (answered = resolve));
  async function* questions() {
    for (const number of upTo(rounds)) {
      yield { text: `question ${number}` };
      await next;
      next = new Promise((resolve) => (answered = resolve));
    }
  }
  const texts = [];
  for await (const answer of client.chat(questions(), options)) {
    texts.push(answer.text);
    answered();
  }
  assert.deepEqual(texts, upTo(rounds).map((number) => `question ${number}`));
}

/** The cases for a protocol, a version of HTTP and a codec; `open` streams the server can have open at once. */
function casesFor(protocol, httpVersion, codec, open) {
  const cases = {};
  const isHttp2 = httpVersion === "2";

  /** A client, and what its requests go through. */
  function make(options = {}, { service = ProbeService, path = "", sockets = Infinity } = {}) {
    const through = isHttp2 ? new WatchingSessions() : new WatchingAgent({ keepAlive: true, maxSockets: sockets });
    connections.push(through);
    const transport = TRANSPORTS[protocol]({
      baseUrl: url + path,
      useBinaryFormat: codec === "proto",
      httpVersion,
      ...(isHttp2 ? { sessionManager: through } : { nodeOptions: { agent: through } }),
      ...options,
    });
    return { client: createClient(service, transport), through };
  }

  cases["values of every type"] = async () => {
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
    const response = await make({ jsonOptions }).client.echo(request);
    assert.deepEqual(response.request, request);
    assert.equal(anyUnpack(response.request.any, PingRequestSchema).text, "hello");
    const mediaType = protocol === "connect" ? `application/${codec}` : `application/${protocol}+${codec}`;
    assert.equal(seen(response).get("content-type")[0], mediaType);
    assert.ok(seen(response).get("user-agent")[0].startsWith("connect-es/"));
  };

  cases["all kinds, one connection"] = async () => {
    const { client, through } = make({}, { sockets: 1 });
    for (let round = 0; round < 5; round += 1) {
      await allKinds(client);
      // Over HTTP/1.1 the client itself drops the connection of a call whose error does not come with the head alone.
      if (isHttp2 || protocol === "connect") {
        assert.equal((await failure(client.echo({ misdeed: "error=ABORTED" }))).code, Code.Aborted);
      }
    }
    assert.equal(through.made, 1);
  };

  for (const [name, compression] of Object.entries({ gzip: compressionGzip, br: compressionBrotli })) {
    cases[name] = async () => {
      const { client } = make({ sendCompression: compression, acceptCompression: [compression] });
      await allKinds(client);
      const kept = metadata();
      const [unary, stream] =
        protocol === "connect" ? ["content-encoding", "connect-content-encoding"] : ["grpc-encoding", "grpc-encoding"];
      const response = await client.echo({ text: "x".repeat(5000) }, kept.options);
      assert.deepEqual(seen(response).get(unary), [name]);
      assert.equal(kept.headers.get(unary), name);
      await all(client.count({ upTo: 3, padding: 5000 }, kept.options));
      assert.equal(kept.headers.get(stream), name);
    };
  }

  cases["nothing compressed"] = async () => {
    const kept = metadata();
    const { client } = make({ acceptCompression: [] });
    await allKinds(client);
    await client.echo({ text: "x".repeat(5000) }, kept.options);
    assert.equal(kept.headers.get("content-encoding"), null);
    assert.equal(kept.headers.get("grpc-encoding"), null);
  };

  if (protocol === "connect") {
    cases["GET"] = async () => {
      const { client, through } = make({ useHttpGet: true });
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
      assert.deepEqual(through.methods, ["GET", "GET", "GET", "POST"]);
    };
  }

  cases["errors of every code"] = async () => {
    const { client } = make();
    const codes = Object.keys(Code).filter((name) => Number.isNaN(Number(name)));
    assert.equal(codes.length, 16);
    for (const name of codes) {
      const upper = name.replace(/(?<!^)([A-Z])/g, "_$1").toUpperCase();
      const error = await failure(client.echo({ misdeed: `error=${upper}` }));
      assert.equal(error.code, Code[name]);
      assert.equal(error.rawMessage, `this is ${upper}`);
    }
  };

  cases["an error with details, headers and trailers"] = async () => {
    const error = await failure(make().client.echo({ misdeed: "error with metadata" }));
    assert.equal(error.code, Code.Aborted);
    assert.deepEqual(error.findDetails(PingRequestSchema).map((detail) => detail.text), ["detail"]);
    assert.equal(error.metadata.get("x-head"), "1");
    assert.equal(error.metadata.get("x-tail"), "2");
  };

  cases["errors of streams"] = async () => {
    const { client } = make();
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

  cases["headers and trailers"] = async () => {
    const { client } = make();
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

  cases["deadlines"] = async () => {
    const { client } = make();
    const response = await client.echo({}, { timeoutMs: 5000 });
    assert.ok(response.timeoutMs > 3000n && response.timeoutMs <= 5000n);
    const began = Date.now();
    // With the second client it is the server's own deadline, of which the client knows nothing.
    const hasty = make({}, { path: "/hasty" }).client;
    const [error, [messages, streamError], hastyError, [hastyMessages, hastyStreamError]] = await Promise.all([
      failure(client.echo({ delayMs: 4000 }, { timeoutMs: 100 })),
      broken(client.count({ upTo: 200, delayMs: 20 }, { timeoutMs: 200 })),
      failure(hasty.echo({ delayMs: 400 })),
      broken(hasty.count({ upTo: 200, delayMs: 20 })),
    ]);
    for (const each of [error, streamError, hastyError, hastyStreamError]) {
      assert.equal(each.code, Code.DeadlineExceeded, each);
    }
    assert.ok(messages.length < 12 && hastyMessages.length < 12);
    assert.ok(Date.now() - began < 4000);
  };

  cases["aborted at every stage, and the next call"] = async () => {
    const { client, through } = make({}, { sockets: 1 });
    await client.notes({});
    const name = `left over ${protocol} ${codec}`;
    // Leaving the loop is not enough for this client: only a signal ends its calls.
    let controller = new AbortController();
    const renewed = () => (controller = new AbortController()).signal;
    for (const count of [1, 3]) {
      const stream = client.count({ upTo: 300, delayMs: 10, name }, { signal: renewed() });
      const [messages, error] = await broken(abortAt(controller, stream, count));
      assert.deepEqual(numbers(messages), upTo(count));
      assert.equal(error.code, Code.Canceled);
      await allKinds(client);
    }
    // Waiting for the answer, between messages of both sides, and while messages are sent.
    const headers = { "x-name": name };
    async function* abortAfter(message, count) {
      yield* each(Array(count).fill(message), 5);
      controller.abort();
      yield* each(Array(100).fill(message), 5);
    }
    for (const call of [
      (options) => {
        setTimeout(() => controller.abort(), 150);
        return client.echo({ delayMs: 800 }, options);
      },
      (options) => all(abortAt(controller, client.chat(each(Array(1000).fill({ text: "x" }), 5), options), 3)),
      (options) => client.sum(abortAfter({ number: 1n }, 10), options),
    ]) {
      assert.equal((await failure(call({ signal: renewed(), headers }))).code, Code.Canceled);
      await allKinds(client);
    }
    // A reset ends the call alone; over HTTP/1.1 a call ends with its connection.
    assert.ok(through.made <= (isHttp2 ? 1 : 6));
    if (isHttp2) {
      await eventually(() => through.state() === "idle");
    }
    await ended(client, name, 3);
  };

  cases["large and too large"] = async () => {
    const { client } = make();
    // Base64 takes this client long.
    const many = codec === "proto" ? 40 : 6;
    const response = await client.echo({ text: "x".repeat(2_000_000) });
    assert.equal(response.request.text.length, 2_000_000);
    const data = await client.echo({ data: new Uint8Array(2_000_000 / (codec === "proto" ? 1 : 10)).fill(7) });
    assert.ok(data.request.data.every((byte) => byte === 7));
    let error = await failure(client.echo({ text: "x".repeat(6_000_000) }));
    assert.equal(error.code, Code.ResourceExhausted, error);
    const large = { misdeed: "x".repeat(6_000_000) };
    error = await failure(make().client.sum(each([{ number: 1n }, large])));
    assert.equal(error.code, Code.ResourceExhausted, error);
    const padding = new Uint8Array(200_000);
    assert.equal((await client.sum(each(Array(many).fill({ number: 1n, padding })))).sum, BigInt(many));
    assert.equal((await all(client.count({ upTo: many, padding: 200_000 }))).length, many);
    error = await failure(make({ readMaxBytes: 1000 }).client.echo({ text: "x".repeat(2000) }));
    assert.equal(error.code, Code.ResourceExhausted, error);
    await allKinds(client);
  };

  cases["empty"] = async () => {
    const { client } = make();
    assert.equal((await client.sum(each([]))).messages, 0);
    assert.deepEqual(await all(client.chat(each([]))), []);
    assert.deepEqual(await all(client.count({})), []);
    const { client: other } = make({}, { service: OtherService });
    assert.deepEqual(await other.ping({}), create(PingResponseSchema));
  };

  cases["what is not there"] = async () => {
    const { client } = make();
    assert.equal((await failure(client.missing({}))).code, Code.Unimplemented);
    const elsewhere = make({}, { path: "/elsewhere" }).client;
    assert.equal((await failure(elsewhere.echo({}))).code, Code.Unimplemented);
    assert.equal((await broken(elsewhere.count({})))[1].code, Code.Unimplemented);
    assert.equal((await failure(elsewhere.sum(each([{}, {}])))).code, Code.Unimplemented);
  };

  cases["mounted"] = async () => {
    for (const path of ["/mounted", "/deep/er", "/prefixed", ...(protocol === "connect" ? ["/strict"] : [])]) {
      await allKinds(make({ useHttpGet: true }, { path }).client);
    }
  };

  cases["many at once"] = async () => {
    const { client, through } = make({}, { sockets: 6 });
    await Promise.all(Array.from({ length: isHttp2 ? 60 : 25 }, () => allKinds(client)));
    assert.ok(through.made <= (isHttp2 ? 1 : 6));
  };

  if (isHttp2) {
    cases["too large again and again on one session"] = async () => {
      const { client, through } = make();
      for (let round = 0; round < 5; round += 1) {
        const error = await failure(client.echo({ text: "x".repeat(4_300_000) }));
        assert.equal(error.code, Code.ResourceExhausted, error);
        await client.echo({ text: "small" });
      }
      assert.equal(through.made, 1);
      await eventually(() => through.state() === "idle");
    };

    cases["full duplex"] = async () => {
      const { client, through } = make();
      await pingPong(client, 100);
      // The server speaks first, before the client has said anything.
      let over;
      async function* silence() {
        await new Promise((resolve) => (over = resolve));
      }
      const greeted = [];
      for await (const message of client.chat(silence(), { headers: { "x-misdeed": "greet" } })) {
        greeted.push(message.text);
        over();
      }
      assert.deepEqual(greeted, ["hello"]);
      assert.equal(through.made, 1);
    };

    cases["full duplex, many streams open on one session"] = async () => {
      const { client, through } = make();
      let waiting = 0;
      let release;
      const allOpen = new Promise((resolve) => (release = resolve));
      async function* questions(index) {
        yield { text: `first ${index}` };
        await allOpen;
        yield { text: `second ${index}` };
      }
      await Promise.all(
        upTo(open).map(async (index) => {
          const texts = [];
          for await (const answer of client.chat(questions(index))) {
            texts.push(answer.text);
            waiting += texts.length === 1 ? 1 : 0;
            if (waiting === open) {
              release();
            }
          }
          assert.deepEqual(texts, [`first ${index}`, `second ${index}`]);
        }),
      );
      await Promise.all(Array.from({ length: 40 }, () => pingPong(client, 20)));
      assert.equal(through.made, 1);
    };

    cases["some of many streams aborted, the others go on"] = async () => {
      const { client, through } = make();
      await Promise.all(
        upTo(30).map(async (index) => {
          if (index % 3) {
            assert.deepEqual(numbers(await all(client.count({ upTo: 20, delayMs: 5, padding: 3000 }))), upTo(20));
            return;
          }
          const controller = new AbortController();
          const stream = client.count({ upTo: 300, delayMs: 5, padding: 3000 }, { signal: controller.signal });
          const [messages, error] = await broken(abortAt(controller, stream, index % 4 + 1));
          assert.equal(error.code, Code.Canceled);
          assert.equal(messages.length, index % 4 + 1);
        }),
      );
      await allKinds(client);
      assert.equal(through.made, 1);
    };
  }

  return cases;
}

/** gRPC with a server that has HTTP/2, but cannot send trailers. */
function refused() {
  const client = createClient(ProbeService, createGrpcTransport({ baseUrl: url }));
  return {
    "gRPC without trailers": async () => {
      for (const error of [
        await failure(client.echo({ text: "x" })),
        (await broken(client.count({ upTo: 3 })))[1],
        await failure(client.sum(each([{ number: 1n }]))),
      ]) {
        assert.equal(error.code, Code.Unimplemented, error);
        assert.match(error.rawMessage, /trailers/);
      }
    },
  };
}

const cases = {};
for (const setting of settings) {
  const [protocol, httpVersion, codec, threads] = setting.split("/");
  const made = protocol === "refused" ? refused() : casesFor(protocol, httpVersion, codec, threads ? 6 : 80);
  for (const [name, run] of Object.entries(made)) {
    cases[`${setting}: ${name}`] = run;
  }
}
const failed = await runCases(cases, console.log, () => connections.splice(0).forEach((each) => each.destroy()));
console.log(`${Object.keys(cases).length} cases, ${failed} failed`);
process.exit(failed ? 1 : 0);
