module github.com/sluice-kafka/sluice

go 1.26
