// Requests to the page's own server. A vote that could not be sent is kept and sent again.

const KEPT = "orpo-mlx-kept-vote";
const AGAIN_MS = 1500;

/** The server cannot be reached or could not keep what was sent: worth another try. */
export class Unreachable extends Error {}

/** The server answered, and will never take what was sent. */
export class Refused extends Error {}

export async function ask(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, body === undefined ? {} : post);
  } catch {
    throw new Unreachable("orpo-mlx cannot be reached: was it stopped in its terminal?");
  }
  if (response.status === 403)
    throw new Unreachable("orpo-mlx was started again: open the link that it printed, in this tab.");
  const answer = await response.json().catch(() => ({ error: `it answered ${response.status}.` }));
  if (response.status >= 500) throw new Unreachable(`Nothing was saved: ${answer.error}`);
  if (!response.ok) throw new Refused(answer.error);
  return answer;
}

export const stateOf = (judge) => ask(`/api/item?judge=${encodeURIComponent(judge)}`);

/** What `send` answers, tried until the server does; `onTrouble` gets each reason why not. */
export async function persist(send, onTrouble) {
  for (;;) {
    try {
      return await send();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      onTrouble(error.message);
      await pause(AGAIN_MS);
    }
  }
}

/** Keep a vote in this tab until the server has it: a reload does not lose it. */
export async function sendVote(vote, onTrouble) {
  sessionStorage.setItem(KEPT, JSON.stringify(vote));
  try {
    return await persist(() => ask("/api/vote", vote), onTrouble);
  } finally {
    sessionStorage.removeItem(KEPT);
  }
}

export const keptVote = () => JSON.parse(sessionStorage.getItem(KEPT) ?? "null");

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** An id for a vote, also where a page has no crypto.randomUUID: over plain http in a network. */
export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
