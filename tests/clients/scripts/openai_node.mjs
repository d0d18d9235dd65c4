// The official OpenAI package for Node against OPENAI_BASE_URL: chat, stream, n, stop, logprobs, responses, cancel, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const ANSWER = "Paris is the capital of France.";
const messages = [{ role: "user", content: "What is the capital of France?" }];
const client = new OpenAI({ maxRetries: 0 });

const whole = await client.chat.completions.create({ model: "test-model", messages, logprobs: true, top_logprobs: 1 });
assert.equal(whole.choices[0].message.content, ANSWER);
assert.equal(whole.choices[0].logprobs.content[0].token, "Paris");
assert.equal(whole.usage.prompt_tokens_details.cached_tokens, 3);

let text = "";
const stream = await client.chat.completions.create({ model: "test-model", messages, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, ANSWER);

const two = await client.chat.completions.create({ model: "test-model", messages, n: 2, stop: [" capital"] });
assert.deepEqual(two.choices.map((choice) => choice.message.content), ["Paris is the", "Paris is the"]);

const response = await client.responses.create({ model: "test-model", input: "Hi" });
assert.equal(response.output_text, ANSWER);

const cut = await client.chat.completions.create({ model: "test-model", messages, stream: true });
for await (const chunk of cut) { assert.ok(chunk.id); cut.controller.abort(); break; }

await assert.rejects(client.chat.completions.create({ model: "other", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model: "test-model", messages: [] }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ model: "test-model", messages, colour: 1 }), /Unrecognized request argument/);
console.log("openai for node passed");
