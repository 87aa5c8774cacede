package diskless

import "errors"

// TooShort reports whether a Load failed because the object ends before the
// range that its reference names.
func TooShort(err error) bool { return errors.Is(err, errShort) }
