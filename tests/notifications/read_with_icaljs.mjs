// Reads a calendar from stdin with ical.js (the reader inside Thunderbird) and prints its events as JSON:
// [{uid, start, end, summary, description}], times as instants in UTC, whole days as dates, end null where none is given.
// Usage: node read_with_icaljs.mjs <folder of the ical.js package>
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const { default: ICAL } = await import(pathToFileURL(join(resolve(process.argv[2]), "dist", "ical.js")).href);

const spoken = (time) => {
  if (time === null) return null;
  if (time.isDate) return time.toString();
  // a floating time would be read as the machine's: say so instead
  if (time.zone === ICAL.Timezone.localTimezone) return `floating ${time}`;
  return new Date(time.toUnixTime() * 1000).toISOString();
};

const calendar = new ICAL.Component(ICAL.parse(readFileSync(0, "utf8")));
const events = calendar.getAllSubcomponents("vevent").map((event) => ({
  uid: event.getFirstPropertyValue("uid"),
  start: spoken(event.getFirstPropertyValue("dtstart")),
  end: spoken(event.getFirstPropertyValue("dtend")),
  summary: event.getFirstPropertyValue("summary"),
  description: event.getFirstPropertyValue("description"),
}));
process.stdout.write(JSON.stringify(events));
