// Numbers as people read them, with their units.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const calendar = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export const NOTHING = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

// Three digits that count, at most.
function digits(value) {
  if (value >= 99.95 || value === 0) return whole.format(value);
  if (value >= 9.995) return String(Number(value.toFixed(1)));
  return String(Number(value.toPrecision(value >= 1 ? 3 : 2)));
}

export const count = (value) => (known(value) ? whole.format(value) : NOTHING);

export const compact = (value) => (known(value) ? (value < 10000 ? whole : short).format(value) : NOTHING);

export function bytes(value) {
  if (!known(value)) return NOTHING;
  const power = value < 1000 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log10(value) / 3));
  return `${digits(value / 1000 ** power)} ${UNITS[power]}`;
}

export function seconds(value) {
  if (!known(value)) return NOTHING;
  if (value === 0) return "0 s";
  if (value < 0.9995) return `${digits(value * 1000)} ms`;
  if (value < 120) return `${digits(value)} s`;
  const minutes = Math.round(value / 60);
  return minutes < 120 ? `${minutes} min` : `${digits(minutes / 60)} h`;
}

export const rate = (value) => (known(value) ? `${digits(value)} tok/s` : NOTHING);

export const percent = (value) => (known(value) ? `${whole.format(100 * value)} %` : NOTHING);

export const score = (value) => (known(value) ? value.toFixed(2) : NOTHING);

// From seconds since 1970; the day is said when it is not today.
export function time(value) {
  const date = new Date(1000 * value);
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock.format(date) : `${calendar.format(date)}, ${clock.format(date)}`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
