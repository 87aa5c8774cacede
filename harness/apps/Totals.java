import java.time.Duration;
import java.util.*;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.streams.*;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.processor.api.*;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.*;

/**
 * A stream processor for the tests.
 *
 *   Totals IN OUT[,OUT...] PAUSE [key=value ...]
 *
 * Values of IN are "account amount rest". What it writes for each, by account and
 * in their order, is "count sum digest rest": how many there were, their sum, and
 * a number that depends on each of them and their order. That state is kept in the
 * store "totals", and records reach it through a repartition topic of two
 * partitions. Each takes PAUSE milliseconds there. It prints a line for each that it
 * passes on or adds up, and ends when it is told to.
 */
public class Totals {
    static long pause;

    public static void main(String[] args) throws Exception {
        pause = Long.parseLong(args[2]);
        Properties p = new Properties();
        p.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        p.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        for (int i = 3; i < args.length; i++) {
            String[] kv = args[i].split("=", 2);
            p.put(kv[0], kv[1]);
        }
        StreamsBuilder b = new StreamsBuilder();
        b.addStateStore(Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore("totals"), Serdes.String(), Serdes.String()));
        KStream<String, String> totals = b.<String, String>stream(args[0])
            .selectKey((k, v) -> {
                String account = v.substring(0, v.indexOf(' '));
                System.out.println("in " + account);
                return account;
            })
            .repartition(Repartitioned.<String, String>as("by-account").withNumberOfPartitions(2))
            .process(Total::new, "totals");
        for (String out : args[1].split(",")) totals.to(out);
        KafkaStreams streams = new KafkaStreams(b.build(), p);
        streams.setUncaughtExceptionHandler(e -> {
            e.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(20))));
        streams.start();
    }

    static class Total extends ContextualProcessor<String, String, String, String> {
        KeyValueStore<String, String> store;

        @Override public void init(ProcessorContext<String, String> context) {
            super.init(context);
            store = context.getStateStore("totals");
        }

        @Override public void process(Record<String, String> r) {
            String[] f = r.value().split(" ", 3);
            String was = store.get(r.key());
            long count = 0, sum = 0, digest = 0;
            if (was != null) {
                String[] w = was.split(" ");
                count = Long.parseLong(w[0]);
                sum = Long.parseLong(w[1]);
                digest = Long.parseLong(w[2]);
            }
            count++;
            sum += Long.parseLong(f[1]);
            digest = digest * 31 + Long.parseLong(f[1]);
            String now = count + " " + sum + " " + digest;
            store.put(r.key(), now);
            context().forward(r.withValue(now + " " + f[2]));
            System.out.println("out " + r.key());
            try {
                Thread.sleep(pause);
            } catch (InterruptedException e) {
                throw new RuntimeException(e);
            }
        }
    }
}
