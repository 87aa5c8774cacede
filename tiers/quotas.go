package tiers

// QuotaKind is one of Kafka's byte rates.
type QuotaKind uint8

const (
	ProduceQuota QuotaKind = iota // producer_byte_rate
	FetchQuota                    // consumer_byte_rate
)

func (k QuotaKind) String() string {
	if k == FetchQuota {
		return "fetch"
	}
	return "produce"
}

// QuotaKinds are all there are.
var QuotaKinds = [...]QuotaKind{ProduceQuota, FetchQuota}

// QuotaClient is whom a quota is looked up for.
type QuotaClient struct {
	User  string // the name of its principal
	Known bool   // User is: the broker has accepted a login that shows the name
	ID    string // client id
}

// ByteRate is a quota that applies to a client. All clients with the same
// rate, user and client id in it share it.
type ByteRate struct {
	PerSecond float64 // above 0
	User      string  // "" when it does not tell users apart
	ClientID  string  // "" when it does not tell client ids apart
}
