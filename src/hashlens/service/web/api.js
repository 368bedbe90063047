// Calls of the service; every failure is an ApiError with one line to show.

export class ApiError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service does not answer. Is it still running?");
  }
  let answer = null;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!response.ok) {
    const line = answer?.detail ?? `The service answered ${response.status}.`;
    throw new ApiError(response.status, line, response.headers.get("Retry-After"));
  }
  return answer;
}

export const getIndex = () => call("v1/index");
export const getImage = (id) => call(`v1/images/${id}`);
export const sampleImages = (limit, seed) => call(`v1/images?limit=${limit}&sample=${seed}`);

export function search(query, settings, signal) {
  const form = new FormData();
  if (query.file) form.append("image", query.file, "query");
  else if (query.text) form.append("text", query.text);
  else form.append("id", query.id);
  form.append("k", settings.k);
  form.append("mode", settings.mode);
  form.append("histogram", "true");
  if (settings.radius !== null && settings.mode !== "es") form.append("radius", settings.radius);
  if (Object.keys(settings.where).length) form.append("where", JSON.stringify(settings.where));
  return call("v1/search", { method: "POST", body: form, signal });
}
