// Numbers and times in words, with their units.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const NONE = "–";

export function rate(value) {
  if (value === null || value === undefined) return NONE;
  return Math.abs(value) < 9.95 && value !== 0 ? one.format(value) : whole.format(value);
}

export const count = (value) => (value === null || value === undefined ? NONE : Number.isInteger(value) ? whole.format(value) : one.format(value));

const hundredths = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
export const price = (value) => (value === null || value === undefined ? NONE : hundredths.format(value));

export function ms(value) {
  if (value === null || value === undefined) return NONE;
  return value < 9.95 ? one.format(value) : whole.format(value);
}

export function percent(fraction) {
  if (fraction === null || fraction === undefined) return NONE;
  const value = 100 * fraction;
  if (value > 99 && value < 100) return `${(Math.floor(value * 100) / 100).toFixed(2)} %`;
  return `${value === 100 ? "100" : value.toFixed(1)} %`;
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  return value >= 2 ** 30 ? `${one.format(value / 2 ** 30)} GiB` : `${whole.format(value / 2 ** 20)} MiB`;
}

/** A part of a whole in the unit of the whole. */
export function part(value, total) {
  const [whole, unit] = bytes(total).split(" ");
  return `${bytes(value).split(" ")[1] === unit ? bytes(value).split(" ")[0] : bytes(value)} of ${whole} ${unit}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 9.95) return `${one.format(Math.max(0, seconds))} s`;
  if (seconds < 120) return `${whole.format(seconds)} s`;
  if (seconds < 7200) return `${whole.format(seconds / 60)} min`;
  if (seconds < 172800) return `${whole.format(seconds / 3600)} h`;
  return `${whole.format(seconds / 86400)} d`;
}

export const ago = (seconds) => (seconds < 1.5 ? "now" : `${duration(Math.round(seconds))} ago`);

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dated = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function moment(atS, nowS) {
  const date = new Date(1000 * atS);
  return nowS - atS < 43200 ? clock.format(date) : dated.format(date);
}

/** A decision's sentence without the numbers of each pipeline, which a table shows better where there are many. */
export function brief(sentence, pipelines) {
  if (pipelines <= 3) return sentence;
  const rest = sentence.split("; ").filter((part) => !/ demand .*capacity |^refuses |^SLO |^and \d+ further pipeline/.test(part));
  return rest.length ? rest.join("; ") : sentence;
}

export const words = (text) => String(text ?? "").replaceAll("_", " ");
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
export const capital = (text) => (text ? text[0].toUpperCase() + text.slice(1) : text);
