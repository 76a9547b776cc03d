// Package body reads the JSON object of a request strictly, and reports every mistake in it at once.
//
// [Parse] accepts one JSON object and nothing else: no second value behind it, no name twice in one object, no bytes that
// are not UTF-8, no character that could not be stored. The fields are then read by name and type; what does not fit is
// noted with its JSON Pointer (RFC 6901) and read as the zero value, so that reading goes on to the next mistake.
//
// A mistake says what was expected, never what came: an answer that shows it repeats nothing of the request but the place.
package body
