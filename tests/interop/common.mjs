// What the cases in Node and those in a browser have in common.

import { ConnectError } from "@connectrpc/connect";

/** How long a case may take. */
const CASE_MS = 30_000;

/** How long it may take until something comes true. */
const PATIENCE_MS = 10_000;

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function all(stream) {
  const messages = [];
  for await (const message of stream) {
    messages.push(message);
  }
  return messages;
}

export async function* each(messages, delayMs = 0) {
  for (const message of messages) {
    yield message;
    await sleep(delayMs);
  }
}

export async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("no error");
}

/** Reads a stream that fails. */
export async function broken(stream) {
  const messages = [];
  try {
    for await (const message of stream) {
      messages.push(message);
    }
  } catch (error) {
    return [messages, ConnectError.from(error)];
  }
  throw new Error("no error");
}

/** Passes a stream on, and aborts its call after so many messages. */
export async function* abortAt(controller, stream, count) {
  for await (const message of stream) {
    yield message;
    count -= 1;
    if (count === 0) {
      controller.abort();
    }
  }
}

/** Keeps the headers and trailers of a call. */
export function metadata() {
  const kept = { headers: undefined, trailers: undefined };
  kept.options = {
    onHeader: (headers) => (kept.headers = headers),
    onTrailer: (trailers) => (kept.trailers = trailers),
  };
  return kept;
}

/** The headers that the server has seen, by their names in lower case. */
export function seen(response) {
  return new Map(response.headers.map((header) => [header.name.toLowerCase(), header.values]));
}

export const numbers = (messages) => messages.map((message) => message.number);
/** The numbers from 1 to `count`. */
export const upTo = (count) => Array.from({ length: count }, (_, index) => index + 1);

/**
 * Waits until so many of the server's handlers of this name have begun or more, and all that have begun are over; what
 * was noted since it was last asked for.
 */
export async function ended(client, name, atLeast) {
  const notes = [];
  const count = (note) => notes.filter((each) => each === `${name}: ${note}`).length;
  for (const until = Date.now() + PATIENCE_MS; Date.now() < until; await sleep(25)) {
    notes.push(...(await client.notes({})).notes);
    if (count("begin") >= atLeast && count("begin") === count("end")) {
      return notes;
    }
  }
  throw new Error(`of ${atLeast} handlers ${count("begin")} have begun and ${count("end")} have ended`);
}

/** Waits until something holds, and fails when it does not come true. */
export async function eventually(holds) {
  for (const until = Date.now() + PATIENCE_MS; Date.now() < until; await sleep(25)) {
    if (holds()) {
      return;
    }
  }
  throw new Error(`never came true: ${holds}`);
}

/** Runs all cases, one after the other, with a line for each; how many have failed. */
export async function runCases(cases, print, after = () => undefined) {
  let failed = 0;
  for (const [name, run] of Object.entries(cases)) {
    const began = Date.now();
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not over after ${CASE_MS} ms`)), CASE_MS);
    });
    try {
      await Promise.race([run(), late]);
      print(`ok    ${name} (${Date.now() - began} ms)`);
    } catch (error) {
      failed += 1;
      print(`FAIL  ${name}: ${error?.stack ?? error}`);
    } finally {
      clearTimeout(timer);
      after();
    }
  }
  return failed;
}
