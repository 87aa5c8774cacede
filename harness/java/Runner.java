import java.io.*;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs the main methods that its standard input names, one after the other, so
 * that a test with many small programs pays for one JVM. Numbers are 32 bits,
 * big-endian; strings are UTF-8 after their length.
 *
 *   request: count, strings (class, arguments), standard input
 *   answer:  exit code, standard output, standard error
 */
public class Runner {
    static class Ended extends RuntimeException {
        Ended(String message) { super(message, null, false, false); }
    }

    /** Goes to the program that runs. */
    static class Switch extends OutputStream {
        volatile OutputStream to = OutputStream.nullOutputStream();
        @Override public void write(int b) throws IOException { to.write(b); }
        @Override public void write(byte[] b, int from, int n) throws IOException { to.write(b, from, n); }
    }

    static final int RUNS = -1;
    static int code;
    static ByteArrayOutputStream stdout, stderr;
    static byte[] out, err;

    /** Only the first end counts: tools that catch everything complain about it and end again. */
    static void end(int status, String message) {
        if (code == RUNS) {
            code = status;
            keep();
        }
        throw new Ended(message);
    }

    static void keep() {
        System.out.flush();
        System.err.flush();
        out = stdout.toByteArray();
        err = stderr.toByteArray();
    }

    public static void main(String[] args) throws Exception {
        var in = new DataInputStream(new BufferedInputStream(System.in));
        var answers = new DataOutputStream(new BufferedOutputStream(System.out));
        // What nobody asked for (loggers keep the stream that they find) must not reach the answers.
        PrintStream log = System.err;
        System.setOut(log);
        Class.forName("org.slf4j.LoggerFactory").getMethod("getLogger", String.class).invoke(null, "Runner");
        // Scala keeps the streams that its first program finds.
        var toOut = new Switch();
        var toErr = new Switch();
        PrintStream programsOut = new PrintStream(toOut, true, StandardCharsets.UTF_8);
        PrintStream programsErr = new PrintStream(toErr, true, StandardCharsets.UTF_8);
        Exit.setExitProcedure(Runner::end);
        Exit.setHaltProcedure(Runner::end);
        for (;;) {
            int n;
            try {
                n = in.readInt();
            } catch (EOFException e) {
                System.exit(0);
                return;
            }
            String[] words = new String[n];
            for (int i = 0; i < n; i++) words[i] = new String(in.readNBytes(in.readInt()), StandardCharsets.UTF_8);
            byte[] input = in.readNBytes(in.readInt());
            stdout = new ByteArrayOutputStream();
            stderr = new ByteArrayOutputStream();
            System.setIn(new ByteArrayInputStream(input));
            toOut.to = stdout;
            toErr.to = stderr;
            System.setOut(programsOut);
            System.setErr(programsErr);
            code = RUNS;
            int status = 0;
            try {
                Class.forName(words[0]).getMethod("main", String[].class)
                    .invoke(null, (Object) Arrays.copyOfRange(words, 1, n));
            } catch (InvocationTargetException e) {
                if (!(e.getCause() instanceof Ended)) {
                    e.getCause().printStackTrace();
                    status = 1;
                }
            }
            if (code == RUNS) {
                code = status;
                keep();
            }
            System.setOut(log);
            System.setErr(log);
            answers.writeInt(code);
            answers.writeInt(out.length);
            answers.write(out);
            answers.writeInt(err.length);
            answers.write(err);
            answers.flush();
        }
    }
}
