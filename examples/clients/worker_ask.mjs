// What a Cloudflare Worker does with LLaVA, against a server of your own: env.AI.run becomes one fetch.
//
//   node examples/clients/worker_ask.mjs PICTURE PROMPT [ADDRESS]

import { readFile } from "node:fs/promises";

const MODEL = "@cf/llava-hf/llava-1.5-7b-hf";

// Use it as the binding: `const env = { AI: binding("https://your-server") }`.
function binding(address, key = "none") {
  return {
    async run(model, input) {
      const response = await fetch(`${address.replace(/\/$/, "")}/ai/run/${model}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` },
        body: JSON.stringify(input),
      });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.errors[0].message);
      return answer;
    },
  };
}

const worker = {
  async fetch(request, env) {
    const prompt = new URL(request.url).searchParams.get("prompt");
    const image = [...new Uint8Array(await request.arrayBuffer())];
    return Response.json(await env.AI.run(MODEL, { image, prompt, temperature: 0 }));
  },
};

const [picture, prompt, address = "http://127.0.0.1:7860"] = process.argv.slice(2);
if (!prompt) throw new Error("Give it PICTURE PROMPT [ADDRESS]");
const env = { AI: binding(address, process.env.LLAVA_API_KEY) };
const url = `https://worker.example/?prompt=${encodeURIComponent(prompt)}`;
const request = new Request(url, { method: "POST", body: await readFile(picture) });
const response = await worker.fetch(request, env);
console.log((await response.json()).description);
