// Questions to the service.
import { decode } from "./pictures.js";

// The answer with its images as `pictures`. What waits for an answer is counted on the page. Throws an Error with the
// reason, and the status of HTTP as `status`.
export async function post(question, content) {
  const { dataset } = document.body;
  dataset.asks = Number(dataset.asks ?? 0) + 1;
  try {
    return await answerTo(question, content);
  } finally {
    dataset.asks -= 1;
  }
}

async function answerTo(question, content) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
  let response;
  try {
    response = await fetch(`/v1/${question}`, options);
  } catch {
    throw new Error("the service does not answer: is it still running?");
  }
  const { status } = response;
  const answer = await response.json().catch(() => ({ error: `the service has failed (${status}): see what it says` }));
  if (!response.ok) throw Object.assign(new Error(answer.error), { status });
  return { ...answer, pictures: await Promise.all((answer.images ?? []).map(decode)) };
}
