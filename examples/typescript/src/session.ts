// Two requests over one session, the second one cancelled as it begins:
// node dist/session.js MODEL PROMPT PROMPT
import { authorize, explain, router, within } from "./connect.js";
import { FinishReason, GenerateRequest } from "./stubs/anabranch/v1/generation.js";
import { SessionRequest, type SessionRequestFrame, type SessionResponse } from "./stubs/anabranch/v1/session.js";

const [model, ...prompts] = process.argv.slice(2);
if (model === undefined || prompts.length !== 2) {
  console.error("usage: node dist/session.js MODEL PROMPT PROMPT");
  process.exit(2);
}
const client = router();
let interrupted = false;

function send(frames: Partial<SessionRequestFrame>[]): SessionRequest {
  return SessionRequest.fromPartial({ frames });
}

async function run(): Promise<void> {
  const session = client.session(await authorize(), within(60));
  process.once("SIGINT", () => {
    interrupted = true;
    session.cancel();
  });
  const texts = new Map<bigint, string>();
  for await (const said of session as AsyncIterable<SessionResponse>) {
    if (said.ready) {
      const starts = prompts.map((prompt, at) => {
        const stream = BigInt(at + 1);
        texts.set(stream, "");
        const sampling = { temperature: 0, maxTokens: 64 };
        const value = GenerateRequest.fromPartial({ model, prompt, sampling });
        return { stream, action: { $case: "start" as const, value } };
      });
      session.write(send(starts));
    }
    for (const { stream, event, last } of said.frames) {
      // A failed request ends alone; the session goes on.
      if (event?.$case === "error") console.log(`${stream} ${event.value.message}`);
      if (event?.$case === "chunk") {
        const { text, finishReason } = event.value;
        if (stream === 2n && !texts.get(stream) && text) {
          session.write(send([{ stream, action: { $case: "cancel", value: {} } }]));
        }
        texts.set(stream, (texts.get(stream) ?? "") + text);
        if (last) console.log(`${stream} ${FinishReason[finishReason]}: ${texts.get(stream)}`);
      }
      if (last) texts.delete(stream);
    }
    // Half-closing lets what runs come to its end, then ends the session.
    if (texts.size === 0) session.end();
  }
}

try {
  await run();
} catch (error) {
  if (interrupted) console.error("cancelled");
  else explain(error);
  process.exitCode = interrupted ? 130 : 1;
}
client.close();
