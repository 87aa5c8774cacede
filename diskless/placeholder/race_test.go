//go:build race

package placeholder

const raceEnabled = true
