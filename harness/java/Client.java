import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.header.*;
import org.apache.kafka.common.header.internals.*;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.common.utils.Exit;

/**
 * A Java client for the tests.
 *
 *   Client produce BOOTSTRAP [key=value ...] &lt; lines    topic partition timestamp key value [headerkey headervalue ...]
 *   Client transact BOOTSTRAP commit|abort [key=value ...] &lt; lines
 *   Client consume BOOTSTRAP COUNT TOPIC[,TOPIC...]|/EXPRESSION/ [key=value ...]
 *   Client transform BOOTSTRAP commit|abort COUNT FROM TO[,TO...] [key=value ...]
 *   Client share BOOTSTRAP COUNT TOPIC[,TOPIC...] MEMBERS [key=value ...]
 *
 * Fields of a line are separated by blanks; keys, values and headers are base64,
 * "-" is null, "." is empty, "_" lets the client choose (partition, timestamp).
 * produce and transact print "topic partition offset" for each acknowledged
 * record; consume prints "topic partition offset timestamp key value headers".
 * The line "flush" ends a batch; "until FILE" waits for a file to be there;
 * "pause MILLIS" waits.
 * transform copies COUNT records of one topic to
 * others and commits their offsets for group.id, in one transaction.
 * share runs members of the share group group.id until they have accepted or
 * rejected COUNT records, and prints each delivery as consume does, with two
 * more headers: delivery (the broker's count) and verdict. When the client
 * acknowledges explicitly, records whose key is a number that ends in 0 are
 * released at their first delivery, and those that end in 1 are rejected. What
 * the broker refused of it goes to standard error, and is not counted.
 */
public class Client {
    public static void main(String[] args) throws Exception {
        Map<String, Object> p = new HashMap<>();
        p.put("bootstrap.servers", args[1]);
        int given = switch (args[0]) { case "produce" -> 2; case "transact" -> 3; case "consume" -> 4; case "transform" -> 6; case "share" -> 5; default -> throw new IllegalArgumentException(args[0]); };
        for (int i = given; i < args.length; i++) {
            String[] kv = args[i].split("=", 2);
            p.put(kv[0], kv[1]);
        }
        switch (args[0]) {
            case "produce" -> produce(p, null);
            case "transact" -> produce(p, args[2]);
            case "consume" -> consume(p, Integer.parseInt(args[2]), Arrays.asList(args[3].split(",")));
            case "transform" -> transform(p, args[2], Integer.parseInt(args[3]), args[4], args[5].split(","));
            case "share" -> share(p, Integer.parseInt(args[2]), Arrays.asList(args[3].split(",")), Integer.parseInt(args[4]));
        }
    }

    static byte[] bytes(String s) {
        return s.equals("-") ? null : s.equals(".") ? new byte[0] : Base64.getDecoder().decode(s);
    }

    static String text(byte[] b) {
        return b == null ? "-" : b.length == 0 ? "." : Base64.getEncoder().encodeToString(b);
    }

    static void produce(Map<String, Object> p, String end) throws Exception {
        if (end != null) p.putIfAbsent("transactional.id", "test-" + UUID.randomUUID());
        try (var producer = new KafkaProducer<>(p, new ByteArraySerializer(), new ByteArraySerializer())) {
            if (end != null) {
                producer.initTransactions();
                producer.beginTransaction();
            }
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            var in = new java.io.BufferedReader(new java.io.InputStreamReader(System.in));
            for (String line; (line = in.readLine()) != null; ) {
                String[] f = line.trim().split(" ");
                if (f[0].equals("flush")) {
                    producer.flush();
                    continue;
                }
                if (f[0].equals("pause")) {
                    Thread.sleep(Long.parseLong(f[1]));
                    continue;
                }
                if (f[0].equals("until")) {
                    while (!new java.io.File(f[1]).exists()) Thread.sleep(20);
                    continue;
                }
                Headers headers = new RecordHeaders();
                for (int i = 5; i + 1 < f.length; i += 2) headers.add(new String(bytes(f[i]), "UTF-8"), bytes(f[i + 1]));
                sent.add(producer.send(new ProducerRecord<>(f[0], f[1].equals("_") ? null : Integer.valueOf(f[1]),
                    f[2].equals("_") ? null : Long.valueOf(f[2]), bytes(f[3]), bytes(f[4]), headers)));
            }
            producer.flush();
            for (var s : sent) {
                RecordMetadata m = s.get();
                System.out.println(m.topic() + " " + m.partition() + " " + m.offset());
            }
            if (end != null) {
                if (end.equals("commit")) producer.commitTransaction(); else producer.abortTransaction();
            }
        }
    }

    static void transform(Map<String, Object> p, String end, int count, String from, String[] to) throws Exception {
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        p.put("isolation.level", "read_committed");
        p.putIfAbsent("transactional.id", "test-" + UUID.randomUUID());
        try (var consumer = new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer());
             var producer = new KafkaProducer<>(p, new ByteArraySerializer(), new ByteArraySerializer())) {
            producer.initTransactions();
            consumer.subscribe(List.of(from));
            long deadline = System.nanoTime() + Duration.ofSeconds(60).toNanos();
            Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
            producer.beginTransaction();
            int got = 0;
            while (got < count && System.nanoTime() < deadline) {
                for (var r : consumer.poll(Duration.ofMillis(200))) {
                    if (got == count) break;
                    got++;
                    offsets.put(new TopicPartition(r.topic(), r.partition()), new OffsetAndMetadata(r.offset() + 1));
                    for (String topic : to) producer.send(new ProducerRecord<>(topic, r.partition(), r.timestamp(), r.key(), r.value(), r.headers()));
                }
            }
            producer.sendOffsetsToTransaction(offsets, consumer.groupMetadata());
            if (end.equals("commit")) producer.commitTransaction(); else producer.abortTransaction();
            if (got < count) {
                System.err.println("got " + got + " of " + count + " records");
                Exit.exit(1);
            }
        }
    }

    /** One topic between slashes is an expression that brokers evaluate (KIP-848), where the client has that. */
    static void subscribe(KafkaConsumer<?, ?> consumer, List<String> topics) {
        String first = topics.get(0);
        if (!first.startsWith("/")) {
            consumer.subscribe(topics);
            return;
        }
        try {
            Class<?> pattern = Class.forName("org.apache.kafka.clients.consumer.SubscriptionPattern");
            consumer.getClass().getMethod("subscribe", pattern).invoke(consumer, pattern.getConstructor(String.class).newInstance(first.substring(1, first.length() - 1)));
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
        }
    }

    static String line(ConsumerRecord<byte[], byte[]> r) {
        StringBuilder out = new StringBuilder();
        out.append(r.topic()).append(' ').append(r.partition()).append(' ').append(r.offset()).append(' ').append(r.timestamp())
            .append(' ').append(text(r.key())).append(' ').append(text(r.value()));
        for (Header h : r.headers()) out.append(' ').append(text(h.key().getBytes())).append(' ').append(text(h.value()));
        return out.toString();
    }

    static void share(Map<String, Object> p, int count, List<String> topics, int members) throws Exception {
        boolean explicit = "explicit".equals(p.get("share.acknowledgement.mode"));
        Set<String> settled = ConcurrentHashMap.newKeySet();
        Queue<String> out = new ConcurrentLinkedQueue<>(), refused = new ConcurrentLinkedQueue<>();
        long deadline = System.nanoTime() + Duration.ofSeconds(60).toNanos();
        Callable<Void> member = () -> {
            try (var consumer = new KafkaShareConsumer<>(new HashMap<>(p), new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                consumer.setAcknowledgementCommitCallback((offsets, e) -> {
                    if (e != null) offsets.forEach((tp, at) -> {
                        for (long offset : at) settled.remove(tp.topic() + " " + tp.partition() + " " + offset);
                        refused.add(tp.topic() + " " + tp.partition() + " " + at + ": " + e);
                    });
                });
                consumer.subscribe(topics);
                while (settled.size() < count && System.nanoTime() < deadline) {
                    for (var r : consumer.poll(Duration.ofMillis(200))) {
                        int delivery = r.deliveryCount().orElseThrow();
                        var verdict = AcknowledgeType.ACCEPT;
                        if (explicit) {
                            long number = Long.parseLong(new String(r.key()));
                            if (number % 10 == 0 && delivery == 1) verdict = AcknowledgeType.RELEASE;
                            if (number % 10 == 1) verdict = AcknowledgeType.REJECT;
                            consumer.acknowledge(r, verdict);
                        }
                        out.add(line(r) + ' ' + text("delivery".getBytes()) + ' ' + text(Integer.toString(delivery).getBytes())
                            + ' ' + text("verdict".getBytes()) + ' ' + text(verdict.toString().getBytes()));
                        if (verdict != AcknowledgeType.RELEASE) settled.add(r.topic() + " " + r.partition() + " " + r.offset());
                    }
                    if (explicit) consumer.commitSync();
                }
                consumer.commitSync(); // closing does not acknowledge what was polled last
            }
            return null;
        };
        var pool = Executors.newFixedThreadPool(members);
        try {
            for (var f : pool.invokeAll(Collections.nCopies(members, member))) f.get();
        } finally {
            pool.shutdownNow();
        }
        out.forEach(System.out::println);
        refused.forEach(System.err::println);
        if (settled.size() < count) {
            System.err.println("settled " + settled.size() + " of " + count + " records");
            Exit.exit(1);
        }
    }

    static void consume(Map<String, Object> p, int count, List<String> topics) {
        p.putIfAbsent("group.id", "test-" + UUID.randomUUID());
        p.putIfAbsent("auto.offset.reset", "earliest");
        try (var consumer = new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            subscribe(consumer, topics);
            long deadline = System.nanoTime() + Duration.ofSeconds(60).toNanos();
            int got = 0;
            StringBuilder out = new StringBuilder();
            while (got < count && System.nanoTime() < deadline) {
                for (var r : consumer.poll(Duration.ofMillis(200))) {
                    got++;
                    out.append(line(r)).append('\n');
                }
            }
            consumer.commitSync();
            System.out.print(out);
            if (got < count) {
                System.err.println("got " + got + " of " + count + " records");
                Exit.exit(1);
            }
        }
    }
}
