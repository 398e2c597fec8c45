// Calls servers of other origins with connect-web, in the page that browser.py serves.
//
// The page's query names the servers, as JSON: `[{"name": ..., "url": ..., "http": "1.1"}, ...]`. Each line of the
// report is posted to /line as soon as it is there, and the number of cases that have failed to /done.

import { anyPack } from "@bufbuild/protobuf/wkt";
import { create, equals } from "@bufbuild/protobuf";
import { Code, createClient, decodeBinaryHeader, encodeBinaryHeader } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { abortAt, all, broken, ended, failure, metadata, numbers, runCases, seen, upTo } from "./common.mjs";
import {
  EchoRequestSchema,
  Mood,
  OtherService,
  PingRequestSchema,
  ProbeService,
} from "./gen/integration_pb.js";

const TRANSPORTS = { connect: createConnectTransport, "grpc-web": createGrpcWebTransport };
const PREFIX = "/integration.v1.ProbeService";

function same(actual, expected, what = "") {
  const [left, right] = [actual, expected].map((value) =>
    JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${part}n` : part)),
  );
  if (left !== right) {
    throw new Error(`${what} ${left}, not ${right}`);
  }
}

function holds(condition, what) {
  if (!condition) {
    throw new Error(`not true: ${what}`);
  }
}

/** How often the server has had this request, such as "POST Echo", of those that it noted. */
function count(notes, request, http) {
  const [method, name] = request.split(" ");
  return notes.filter((note) => note === `${method} ${PREFIX}/${name} HTTP/${http}`).length;
}

/** What has to be seen before any other call to a server. */
function casesOfServer({ name, url, http }) {
  const make = (path = "") => createClient(ProbeService, createConnectTransport({ baseUrl: url + path }));
  return {
    [`${name}: one preflight for several calls`]: async () => {
      const client = make();
      for (const round of upTo(3)) {
        same((await client.echo({ number: BigInt(round) })).request.number, BigInt(round));
      }
      const { notes } = await client.notes({});
      same([count(notes, "OPTIONS Echo", http), count(notes, "POST Echo", http)], [1, 3], "preflights and calls");
    },
    [`${name}: nothing is to be had without CORS`]: async () => {
      const error = await failure(make("/closed").echo({}));
      same(error.code, Code.Unknown);
    },
  };
}

/** The cases for a server, a protocol and a codec. */
function casesFor({ name, url, http }, protocol, codec) {
  const cases = {};
  const add = (title, run) => (cases[`${name}, ${protocol}, ${codec}: ${title}`] = run);
  const make = (options = {}, { service = ProbeService, path = "" } = {}) => {
    const baseUrl = url + path;
    return createClient(service, TRANSPORTS[protocol]({ baseUrl, useBinaryFormat: codec === "proto", ...options }));
  };

  add("unary", async () => {
    const request = create(EchoRequestSchema, {
      text: "\u00e4\u{1f600}\0",
      data: new Uint8Array([0, 255, 128]),
      number: -(2n ** 63n),
      ratio: -1e-300,
      mood: Mood.GOOD,
      child: { child: { text: "deep" } },
      counts: { a: 1, "": -5 },
      duration: { seconds: -3n, nanos: -5 },
      struct: { a: null, b: [1, "x", true], c: { d: {} } },
    });
    if (codec === "proto") {
      request.any = anyPack(PingRequestSchema, create(PingRequestSchema, { text: "hello" }));
    }
    const response = await make().echo(request);
    holds(equals(EchoRequestSchema, response.request, request), "the request comes back");
    const mediaType = protocol === "connect" ? `application/${codec}` : `application/${protocol}+${codec}`;
    same(seen(response).get("content-type")[0], mediaType);
    same(seen(response).get("origin"), [location.origin]);
    same((await make({}, { service: OtherService }).ping({ text: "x" })).text, "x");
  });

  add("server stream", async () => {
    const client = make();
    same(numbers(await all(client.count({ upTo: 5, padding: 2000 }))), upTo(5));
    same(await all(client.count({})), []);
  });

  add("headers and trailers", async () => {
    const client = make();
    const binary = new Uint8Array([0, 1, 254, 255]);
    const headers = { "x-text": "a, b", "x-data-bin": encodeBinaryHeader(binary) };
    for (const call of [
      (options) => client.echo({ misdeed: "metadata" }, options),
      (options) => all(client.count({ upTo: 1, misdeed: "metadata" }, options)),
    ]) {
      const kept = metadata();
      const response = await call({ headers, ...kept.options });
      same(kept.headers.get("x-head"), "1, 2");
      same(kept.trailers.get("x-tail"), "3, 4");
      if (response.headers !== undefined) {
        same(seen(response).get("x-text").join(", "), "a, b");
        same([...decodeBinaryHeader(seen(response).get("x-data-bin")[0])], [...binary]);
      }
    }
  });

  add("errors of every code", async () => {
    const client = make();
    const codes = Object.keys(Code).filter((name) => Number.isNaN(Number(name)));
    same(codes.length, 16);
    for (const name of codes) {
      const upper = name.replace(/(?<!^)([A-Z])/g, "_$1").toUpperCase();
      const error = await failure(client.echo({ misdeed: `error=${upper}` }));
      same([error.code, error.rawMessage], [Code[name], `this is ${upper}`]);
    }
    same((await failure(client.missing({}))).code, Code.Unimplemented);
    same((await failure(make({}, { path: "/elsewhere" }).echo({}))).code, Code.Unimplemented);
  });

  add("errors with details, headers and trailers", async () => {
    const client = make();
    let error = await failure(client.echo({ misdeed: "error with metadata" }));
    same([error.code, error.rawMessage], [Code.Aborted, "no"]);
    same(error.findDetails(PingRequestSchema).map((detail) => detail.text), ["detail"]);
    same([error.metadata.get("x-head"), error.metadata.get("x-tail")], ["1", "2"]);
    let messages;
    [messages, error] = await broken(client.count({ upTo: 3, misdeed: "error last" }));
    same([numbers(messages), error.code, error.rawMessage], [[1, 2, 3], Code.NotFound, "enough"]);
    same(error.findDetails(PingRequestSchema).map((detail) => detail.text), ["detail"]);
    [messages, error] = await broken(client.count({ misdeed: "error at once" }));
    same([messages, error.code], [[], Code.NotFound]);
  });

  add("deadlines", async () => {
    const client = make();
    const response = await client.echo({}, { timeoutMs: 5000 });
    holds(response.timeoutMs > 2000n && response.timeoutMs <= 5000n, `${response.timeoutMs} ms are left of 5 s`);
    // With the second client it is the server's own deadline, of which the client knows nothing.
    const hasty = make({}, { path: "/hasty" });
    const [error, [, streamError], hastyError] = await Promise.all([
      failure(client.echo({ delayMs: 1500 }, { timeoutMs: 100 })),
      broken(client.count({ upTo: 200, delayMs: 20 }, { timeoutMs: 200 })),
      failure(hasty.echo({ delayMs: 400 })),
    ]);
    same([error, streamError, hastyError].map((each) => each.code), Array(3).fill(Code.DeadlineExceeded));
  });

  add("aborted in the middle, and the next call", async () => {
    const client = make();
    const note = `left over ${protocol} ${codec}`;
    await client.notes({});
    for (const messages of [1, 3]) {
      const controller = new AbortController();
      // Over HTTP/1.1 Chromium reads on for up to 5 s or 16 KiB, to keep the connection.
      const asked = { upTo: 500, delayMs: 10, padding: 4000, name: note };
      const stream = client.count(asked, { signal: controller.signal });
      const [got, error] = await broken(abortAt(controller, stream, messages));
      same([numbers(got), error.code], [upTo(messages), Code.Canceled]);
      same((await client.echo({ text: "next" })).request.text, "next");
    }
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 50);
    same((await failure(client.echo({ delayMs: 400 }, { signal: controller.signal }))).code, Code.Canceled);
    same((await client.echo({ text: "next" })).request.text, "next");
    const notes = await ended(client, note, 2);
    if (http === "2") {
      same(new Set(notes.filter((each) => each.startsWith("connection"))).size, 1, "connections");
    }
  });

  add("large and many", async () => {
    const client = make();
    same((await client.echo({ text: "x".repeat(2_000_000) })).request.text.length, 2_000_000);
    same((await failure(client.echo({ text: "x".repeat(6_000_000) }))).code, Code.ResourceExhausted);
    const lengths = (await all(client.count({ upTo: 10, padding: 100_000 }))).map((message) => message.padding.length);
    same(lengths, Array(10).fill(100_000));
    const answers = await Promise.all(upTo(30).map((number) => client.echo({ number: BigInt(number) })));
    same(answers.map((answer) => Number(answer.request.number)), upTo(30));
    const streams = await Promise.all(upTo(12).map(() => all(client.count({ upTo: 5, delayMs: 5 }))));
    streams.forEach((messages) => same(numbers(messages), upTo(5)));
  });

  if (protocol === "connect") {
    add("GET, without a preflight, from the cache", async () => {
      const client = make({ useHttpGet: true });
      await client.notes({});
      const text = `for a minute \u00e4 +/?&%=# ${codec}`;
      const answers = [];
      for (const _ of upTo(3)) {
        answers.push(await client.look({ text }));
      }
      answers.forEach((answer) => same(answer.request.text, text));
      same(new Set(answers.map((answer) => JSON.stringify(answer.headers))).size, 1);
      await client.look({ text: `not kept ${codec}` });
      await client.look({ text: `not kept ${codec}` });
      same((await failure(client.look({ misdeed: "error=ABORTED" }))).code, Code.Aborted);
      const { notes } = await client.notes({});
      const requests = ["OPTIONS Look", "POST Look", "GET Look"].map((request) => count(notes, request, http));
      same(requests, [0, 0, 4], "preflights, POSTs and GETs");
    });
  }

  return cases;
}

async function post(path, text) {
  await fetch(path, { method: "POST", body: text });
}

async function main() {
  const cases = {};
  const servers = JSON.parse(new URLSearchParams(location.search).get("servers"));
  for (const server of servers) {
    Object.assign(cases, casesOfServer(server));
    for (const protocol of Object.keys(TRANSPORTS)) {
      for (const codec of ["proto", "json"]) {
        Object.assign(cases, casesFor(server, protocol, codec));
      }
    }
  }
  let told = Promise.resolve();
  const failed = await runCases(cases, (line) => (told = told.then(() => post("/line", line))));
  await told;
  await post("/line", `${Object.keys(cases).length} cases, ${failed} failed`);
  await post("/done", String(failed));
}

main().catch((error) => post("/line", `FAIL  ${error?.stack ?? error}`).then(() => post("/done", "1")));
