// Requests to the server, and what goes wrong with them in plain words.

export class RequestError extends Error {
  constructor(message, { status = 0, detail = "" } = {}) {
    super(message);
    this.status = status;
    this.detail = detail;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function plainWords(status, detail, seconds, hasToken) {
  const again = seconds ? ` Try again in ${seconds} s.` : " Try again later.";
  switch (status) {
    case 401:
      return hasToken
        ? "The server does not know this access token. Check it under “Access token”."
        : "The server asks for an access token. Write yours under “Access token”, then load the prompts.";
    case 413:
      return "These texts are too large for one request. Send fewer or shorter texts.";
    case 429:
      return `This token has used up its rate of answers.${again}`;
    case 503:
      return `The server is busy or stopping.${again}`;
    case 504:
      return "The answers took too long. Send fewer texts or choose fewer prompts.";
    default:
      return detail ? sentence(detail) : `The server failed with status ${status}. Its log says why.`;
  }
}

// Returns the document that answers a request; raises RequestError. `body` undefined sends GET, anything else POST.
export async function ask(path, token, body) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new RequestError("The server cannot be reached. Check that it still runs and that you are online.");
  }
  const { status } = response;
  let document;
  try {
    document = await response.json();
  } catch {
    throw new RequestError(`The reply is no JSON (status ${status}); a proxy in front of the server may have sent it.`, { status });
  }
  if (response.ok) return document;
  const detail = String(document.error ?? "");
  const message = plainWords(status, detail, response.headers.get("retry-after"), Boolean(token));
  throw new RequestError(message, { status, detail: message === sentence(detail) ? "" : detail });
}
