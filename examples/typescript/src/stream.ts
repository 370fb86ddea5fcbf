// Prints an answer as it comes: node dist/stream.js MODEL PROMPT [MAX_TOKENS]
import { setTimeout as sleep } from "node:timers/promises";
import { authorize, explain, router, within } from "./connect.js";
import { GenerateChunk, GenerateRequest, Role, Tier } from "./stubs/anabranch/v1/generation.js";

const [model, prompt, maxTokens = "64"] = process.argv.slice(2);
if (model === undefined || prompt === undefined) {
  console.error("usage: node dist/stream.js MODEL PROMPT [MAX_TOKENS]");
  process.exit(2);
}
const request = GenerateRequest.fromPartial({
  model,
  messages: [{ role: Role.ROLE_USER, content: [{ part: { $case: "text", value: prompt } }] }],
  sampling: { temperature: 0, maxTokens: Number(maxTokens) },
});

const client = router();
const interrupted = new AbortController();
process.once("SIGINT", () => interrupted.abort());

async function ask(): Promise<void> {
  const call = client.streamGenerate(request, await authorize(), within(60));
  interrupted.signal.addEventListener("abort", () => call.cancel());
  if (interrupted.signal.aborted) call.cancel();
  let last = GenerateChunk.fromPartial({});
  for await (const chunk of call as AsyncIterable<GenerateChunk>) {
    process.stdout.write(chunk.text);
    last = chunk;
  }
  process.stdout.write("\n");
  const tier = Tier[last.receipt?.tier ?? 0];
  console.error(`receipt: ${tier} ${last.receipt?.backendId}, ${last.usage?.completionTokens} tokens`);
}

async function askTwiceIfTold(): Promise<number> {
  for (let again = true; ; again = false) {
    try {
      await ask();
      return 0;
    } catch (error) {
      if (interrupted.signal.aborted) throw error;
      const wait = explain(error);
      if (wait === undefined || !again) return 1;
      console.error(`once more in ${wait} s`);
      await sleep(wait * 1000, undefined, { signal: interrupted.signal });
    }
  }
}

try {
  process.exitCode = await askTwiceIfTold();
} catch (error) {
  if (!interrupted.signal.aborted) throw error;
  console.error("cancelled");
  process.exitCode = 130;
}
client.close();
