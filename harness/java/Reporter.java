import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import java.util.regex.*;
import org.apache.kafka.common.metrics.*;
import org.apache.kafka.server.authorizer.AuthorizableRequestContext;
import org.apache.kafka.server.telemetry.*;

/**
 * A broker's plugin that writes down what clients push of their metrics
 * (KIP-714), a line for each push into the file reporter.file: the client's id
 * and the names of the metrics.
 */
@SuppressWarnings("removal") // its successor is not in older releases
public class Reporter implements MetricsReporter, ClientTelemetry, ClientTelemetryReceiver {
    private static final Pattern NAME = Pattern.compile("org\\.apache\\.kafka\\.[a-z.]+");
    private Path file;

    public void configure(Map<String, ?> configs) { file = Path.of((String) configs.get("reporter.file")); }
    public void init(List<KafkaMetric> metrics) { }
    public void metricChange(KafkaMetric metric) { }
    public void metricRemoval(KafkaMetric metric) { }
    public void close() { }
    public ClientTelemetryReceiver clientReceiver() { return this; }

    public void exportMetrics(AuthorizableRequestContext context, ClientTelemetryPayload payload) {
        StringBuilder line = new StringBuilder(context.clientId());
        Matcher names = NAME.matcher(StandardCharsets.ISO_8859_1.decode(payload.data()));
        while (names.find()) line.append(' ').append(names.group());
        try {
            Files.writeString(file, line.append('\n'), StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        } catch (java.io.IOException e) {
            throw new java.io.UncheckedIOException(e);
        }
    }
}
