// Written from Android's documentation: android.jar of API 23 does not name the chip. It has the rest.
package android.os;

public class Build {
    public static final String UNKNOWN = "unknown";
    public static final String BOARD = System.getProperty("");
    public static final String FINGERPRINT = System.getProperty("");
    public static final String MANUFACTURER = System.getProperty("");
    public static final String MODEL = System.getProperty("");
    public static final String[] SUPPORTED_ABIS = {};

    /** From API 31 on. */
    public static final String SOC_MANUFACTURER = System.getProperty("");

    /** From API 31 on. */
    public static final String SOC_MODEL = System.getProperty("");

    public static class VERSION {
        public static final String RELEASE = System.getProperty("");
        public static final int SDK_INT = Integer.getInteger("");
    }
}
