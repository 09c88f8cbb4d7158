// What users of the official Node client rely on: run with the API's address and a key, prints "ok" for each part.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
const user = (content) => [{ role: "system", content: "Do as told." }, { role: "user", content }];
const ask = (script, more = {}) => client.chat.completions.create({ model: "chat", messages: user(script), ...more });

async function part(name, run) {
  await run();
  console.log(`ok ${name}`);
}

await part("chat", async () => {
  const reply = await ask("say Hello");
  assert.equal(reply.choices[0].message.content, "Hello");
  assert.equal(reply.choices[0].finish_reason, "stop");
  assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
});

await part("streaming with usage", async () => {
  const stream = await ask("say Hel|wait 0.02|say lo", { stream: true, stream_options: { include_usage: true } });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, "Hello");
  assert.equal(usage.completion_tokens, 5);
});

await part("stop strings", async () => {
  const reply = await ask("say one <e|say nd> two", { stop: ["<end>"] });
  assert.equal(reply.choices[0].message.content, "one ");
});

await part("n", async () => {
  const reply = await ask("say Hi", { n: 3 });
  assert.deepEqual(reply.choices.map((choice) => choice.index).sort(), [0, 1, 2]);
});

await part("abort", async () => {
  const stream = await ask("say Hel|wait 30|say lo", { stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta?.content) break; // leaving the loop aborts the request
  }
});

await part("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes("chat"));
});

for (const [name, body, kind, status] of [
  ["400", { model: "chat", messages: [] }, OpenAI.BadRequestError, 400],
  ["404", { model: "nope", messages: user("say x") }, OpenAI.NotFoundError, 404],
  ["503", { model: "away", messages: user("say x") }, OpenAI.InternalServerError, 503],
  ["504", { model: "chat", messages: user("wait 5"), foreserve: { slo_ms: 100 } }, OpenAI.InternalServerError, 504],
]) {
  await part(name, async () => {
    await assert.rejects(client.chat.completions.create(body), (error) => {
      assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
      assert.equal(error.status, status);
      return true;
    });
  });
}

await part("401", async () => {
  const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

await part("429", async () => {
  const small = (script) => client.chat.completions.create({ model: "small", messages: user(script) });
  const busy = [small("wait 2|say a"), small("wait 2|say b"), small("wait 2|say c"), small("wait 2|say d")];
  const ended = await Promise.allSettled(busy);
  const refused = ended.filter((end) => end.status === "rejected").map((end) => end.reason);
  assert.ok(refused.length > 0);
  for (const error of refused) {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.ok(Number(error.headers.get("retry-after")) >= 1);
  }
});
