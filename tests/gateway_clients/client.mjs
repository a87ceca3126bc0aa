// The official JavaScript client as a puppet: one JSON command a line on stdin, one JSON event a line on stdout.
import { createInterface } from "node:readline";
import { Centrifuge, UnauthorizedError } from "centrifuge";
import { Centrifuge as ProtobufCentrifuge } from "centrifuge/build/protobuf";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const clients = new Map();
const subscriptions = new Map();
const waiting = new Map();

const tell = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const binary = new Set();
const text = (data) => (data instanceof Uint8Array ? JSON.parse(new TextDecoder().decode(data)) : data);
const written = (name, data) => (binary.has(name) ? new TextEncoder().encode(JSON.stringify(data)) : data);
const known = (info) => ({ client: info.client, user: info.user, conn_info: text(info.connInfo) });
const plain = (error) => ({ code: error.code, message: error.message, temporary: error.temporary ?? false });

function open({ client: name, url, token, asks_for_tokens, protobuf, emulation }) {
  const options = { websocket: WebSocket, eventsource: EventSource, minReconnectDelay: 10, maxReconnectDelay: 50, name };
  if (emulation) options.emulationEndpoint = emulation;
  if (token) options.token = token;
  if (asks_for_tokens) {
    options.getToken = () => new Promise((resolve, reject) => {
      waiting.set(name, { resolve, reject });
      tell({ client: name, event: "get_token" });
    });
  }
  if (protobuf) binary.add(name);
  const client = protobuf ? new ProtobufCentrifuge(url, options) : new Centrifuge(url, options);
  for (const event of ["connecting", "connected", "disconnected"]) {
    client.on(event, (ctx) => tell({ client: name, event, code: ctx.code, reason: ctx.reason }));
  }
  client.on("error", (ctx) => tell({ client: name, event: "error", error: plain(ctx.error) }));
  for (const event of ["subscribed", "unsubscribed"]) {
    client.on(event, (ctx) => tell({ client: name, event: `server_${event}`, channel: ctx.channel }));
  }
  client.on("publication", (ctx) => tell({ client: name, event: "hint", channel: ctx.channel, data: text(ctx.data), offset: ctx.offset }));
  clients.set(name, client);
}

function subscribe({ client: name, channel, since, join_leave }) {
  const key = `${name} ${channel}`;
  let sub = subscriptions.get(key);
  if (!sub) {
    const options = { minResubscribeDelay: 10, maxResubscribeDelay: 50 };
    if (since) options.since = since;
    if (join_leave) options.joinLeave = true;
    sub = clients.get(name).newSubscription(channel, options);
    sub.on("subscribed", (ctx) => tell({
      client: name, channel, event: "subscribed", recovered: ctx.recovered, was_recovering: ctx.wasRecovering,
      position: ctx.streamPosition, recoverable: ctx.recoverable, positioned: ctx.positioned,
    }));
    sub.on("subscribing", (ctx) => tell({ client: name, channel, event: "subscribing", code: ctx.code, reason: ctx.reason }));
    sub.on("unsubscribed", (ctx) => tell({ client: name, channel, event: "unsubscribed", code: ctx.code, reason: ctx.reason }));
    sub.on("error", (ctx) => tell({ client: name, channel, event: "error", error: plain(ctx.error) }));
    sub.on("publication", (ctx) => tell({ client: name, channel, event: "publication", offset: ctx.offset, data: text(ctx.data) }));
    for (const event of ["join", "leave"]) {
      sub.on(event, (ctx) => tell({ client: name, channel, event, info: known(ctx.info) }));
    }
    subscriptions.set(key, sub);
  }
  sub.subscribe();
}

async function call({ client: name, call: method, args, tag }) {
  const client = clients.get(name);
  try {
    if (method === "rpc" || method === "publish") args[1] = written(name, args[1]);
    if (method === "send") args[0] = written(name, args[0]);
    let result = await client[method](...args);
    if (result?.data) result = { ...result, data: text(result.data) };
    if (method === "history") result = { ...result, publications: result.publications.map((pub) => pub.offset) };
    if (method === "presence") result = Object.values(result.clients).map(known);
    tell({ client: name, event: "result", tag, result: result ?? null });
  } catch (error) {
    tell({ client: name, event: "result", tag, error: plain(error) });
  }
}

const actions = {
  open,
  subscribe,
  call,
  connect: ({ client }) => clients.get(client).connect(),
  disconnect: ({ client }) => clients.get(client).disconnect(),
  unsubscribe: ({ client, channel }) => subscriptions.get(`${client} ${channel}`).unsubscribe(),
  token: ({ client, token }) => {
    const { resolve, reject } = waiting.get(client);
    token ? resolve(token) : reject(new UnauthorizedError());
  },
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const action = JSON.parse(line);
    actions[action.do](action);
  })
  .on("close", () => process.exit(0));
tell({ event: "ready" });
