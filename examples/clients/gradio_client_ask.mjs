// Ask a running server about a picture from JavaScript, and print the answer as it grows.
//
//   npm install @gradio/client && node examples/clients/gradio_client_ask.mjs PICTURE PROMPT [ADDRESS]

import { Client, handle_file } from "@gradio/client";

const [picture, prompt, address = "http://127.0.0.1:7860"] = process.argv.slice(2);
if (!prompt) throw new Error("Give it PICTURE PROMPT [ADDRESS]");

const client = await Client.connect(address);
const job = client.submit("/ask", { image: handle_file(picture), prompt, temperature: 0 });
let shown = "";
for await (const event of job) {
  if (event.type === "data") {
    process.stdout.write(event.data[0].slice(shown.length));
    shown = event.data[0];
  }
  if (event.type === "status" && event.stage === "error") throw new Error(event.message);
  if (event.type === "status" && event.stage === "complete") break;
}
console.log();
client.close();
